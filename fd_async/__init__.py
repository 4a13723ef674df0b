"""fd_async: asynchronous Feedback Distillation for Lean 4 theorem proving."""

__version__ = "0.1.0"
