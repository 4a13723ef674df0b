"""The judge of proofs: workers, pool, judging ladder and the three tools of the model."""
