"""The cold audit of accepted proofs."""
