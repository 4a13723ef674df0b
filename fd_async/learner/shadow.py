"""A second set of weights beside the student's, without a second model: the EMA teacher, or GRPO's frozen reference.

It has the layout of the optimizer's own float32 partition, so a rank keeps 4 bytes per parameter over the number of
ranks (ZeRO 1 to 3), updates without communication, and computes by lending its weights to the one module
(`Engine.wearing`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fd_async.algorithms.ema import update_ema
from fd_async.learner.shards import Fragment, Piece, Shards, fragments


class Shadow:
    """Float32 weights of this rank, in the layout of its shards."""

    def __init__(self, shards: Shards) -> None:
        self._pieces: Sequence[Piece] = shards.pieces
        self.flats: list[Tensor] = [flat.detach().clone() for flat in shards.flats]

    def follow(self, masters: Sequence[Tensor], retention: float) -> None:
        """Move towards the student: mu <- retention * mu + (1 - retention) * theta."""
        update_ema(self.flats, [master.detach() for master in masters], retention)

    @property
    def fragments(self) -> dict[str, Fragment]:
        """This rank's share by parameter name, views of the live tensors."""
        return fragments(self._pieces, self.flats)

    @torch.no_grad()
    def restore(self, values: dict[str, Tensor]) -> None:
        """Replace the weights, exactly; `values` has the names and lengths of `fragments`."""
        for name, fragment in self.fragments.items():
            fragment.values.copy_(values[name])
