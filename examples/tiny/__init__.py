"""The tiny world: core-Lean statements, a small model, and the code that makes both."""
