"""Lean in REPL processes: one process, the pool of them, and the backend that judges with it."""
