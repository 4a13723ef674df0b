"""The control plane: admission, the loops, the wait table, checkpoints."""
