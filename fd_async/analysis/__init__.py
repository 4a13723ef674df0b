"""What attempts say about a policy: pass@k, lemmas and tactics. Pure functions, no I/O."""
