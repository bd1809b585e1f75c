"""Damaged files, odd arguments, bad servers, drawn at random: none may crash, hang, run, or pass for what it is not."""
