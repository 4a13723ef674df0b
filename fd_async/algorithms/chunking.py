"""How many rows of logits exist at once; without torch, so that a memory plan can use the same rule."""

from __future__ import annotations

_SHARE = 0.035
_MIN_ROWS = 64
_MIN_BYTES = 4 * 2**20
_STEP = 32


def chunk_rows(num_rows: int, chunk_tokens: int, vocab: int) -> int:
    """Return how many rows of logits exist at once: `chunk_tokens`, or when 0 a share of all rows.

    The share is 3.5 % in steps of 32, but at least 64 rows and 4 MiB of float32: below, calls cost more than sums.
    """
    share = int(num_rows * _SHARE) // _STEP * _STEP
    return chunk_tokens or max(_MIN_ROWS, share, _MIN_BYTES // (4 * vocab))


def chunks(num_rows: int, chunk: int) -> list[slice]:
    """Cut [0, num_rows) into slices of at most `chunk` rows."""
    return [slice(start, min(start + chunk, num_rows)) for start in range(0, num_rows, chunk)]
