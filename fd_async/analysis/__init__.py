"""What attempts say about a policy: pass@k, words, tactics and lemmas. Pure functions, no I/O."""
