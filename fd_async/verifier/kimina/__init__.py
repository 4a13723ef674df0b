"""Lean on a Kimina Lean Server."""
