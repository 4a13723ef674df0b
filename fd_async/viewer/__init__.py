"""Reads a run folder and shows it. Never imports torch and never changes the run."""
