"""How workers are locked in, and the probe that tries to get out."""
