"""minilean: a small sound proof checker for a fragment of core Lean 4 (see docs/minilean.md).

It exists so that the training loop runs where no Lean is installed. Run it as `python -m fd_async.verifier.minilean`;
it speaks the protocol of the Lean REPL. Invariants: a theorem counts only after `kernel` has type-checked its whole
proof term (or it is recorded with the axiom `sorryAx`); whatever is outside the fragment is refused with an error that
begins `minilean: unsupported:`. Nothing here imports torch or vllm.
"""
