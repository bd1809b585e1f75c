"""Damaged files and odd arguments, drawn at random: nothing may crash, hang, run, or be taken for what it is not."""
