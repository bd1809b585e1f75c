"""Measurements for the README, each a module to be run: `python -m benchmarks.imports`."""
