"""The mathematics of training: pure functions over tensors, no I/O.

`lm_head` (logits in chunks), `distillation` (teacher top-K and student loss), `grpo` (clipped policy loss),
`advantages` (group advantages, no torch), `ema` (teacher update). Import the submodules; this file imports nothing.
"""
