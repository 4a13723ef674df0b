"""Ways in which staged weights can be wrong, each of which an engine must refuse."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from fd_async.types import StagedWeights
from tests.fakes.weights import BLOCK_BYTES

ROWS = ("names", "dtypes", "shapes", "offsets")


def altered_file(staged: StagedWeights, change: Callable[[bytearray], None]) -> StagedWeights:
    """Return the manifest with the path of a changed copy of its file."""
    data = bytearray(Path(staged.path).read_bytes())
    change(data)
    path = Path(staged.path).with_suffix(".bad")
    path.write_bytes(data)
    return replace(staged, path=str(path)).sealed()


def truncated(staged: StagedWeights) -> StagedWeights:
    def cut(data: bytearray) -> None:
        del data[-4:]

    return altered_file(staged, cut)


def flipped_bit(staged: StagedWeights) -> StagedWeights:
    def flip(data: bytearray) -> None:
        position = random.Random(staged.version).randrange(len(data))
        data[position] ^= 1 << (staged.version % 8)

    return altered_file(staged, flip)


def not_finite(staged: StagedWeights, value: float = float("nan")) -> StagedWeights:
    """Stage one bad float in the middle, hashed and sealed as a learner that does not look would do it."""

    def spoil(data: bytearray) -> None:
        data[staged.offsets[1] : staged.offsets[1] + 4] = struct.pack("<f", value)

    bad = altered_file(staged, spoil)
    data = Path(bad.path).read_bytes()
    starts = range(0, len(data), BLOCK_BYTES)
    return replace(
        bad, sha256=[hashlib.sha256(data[start : start + BLOCK_BYTES]).hexdigest() for start in starts]
    ).sealed()


def exchanged_rows(staged: StagedWeights) -> StagedWeights:
    """Give two tensors of the same shape each other's bytes."""
    shapes = staged.shapes
    one, other = next((i, j) for i in range(len(shapes)) for j in range(i) if shapes[i] == shapes[j])
    offsets = list(staged.offsets)
    offsets[one], offsets[other] = offsets[other], offsets[one]
    return replace(staged, offsets=offsets)


BAD_PUSHES: dict[str, Callable[[StagedWeights], StagedWeights]] = {
    "missing tensor": lambda good: replace(good, **{key: getattr(good, key)[:-1] for key in ROWS}).sealed(),
    "extra tensor": lambda good: replace(good, names=[*good.names[:-1], "model.unknown.weight"]).sealed(),
    "tensor twice": lambda good: replace(good, names=[*good.names[:-1], good.names[0]]).sealed(),
    "wrong shape": lambda good: replace(good, shapes=[*good.shapes[:-1], [64, 2]]).sealed(),
    "wrong dtype": lambda good: replace(good, dtypes=["int8", *good.dtypes[1:]]).sealed(),
    "overlapping tensors": lambda good: replace(good, offsets=[good.offsets[0], *good.offsets[:-1]]).sealed(),
    "exchanged rows": exchanged_rows,
    "altered probe": lambda good: replace(good, probe_logprobs=[0.0, *good.probe_logprobs[1:]]),
    "probe without log-probs": lambda good: replace(good, probe_logprobs=[]).sealed(),
    "wrong hash": lambda good: replace(good, sha256=[*good.sha256[:-1], "0" * 64]).sealed(),
    "missing hash": lambda good: replace(good, sha256=good.sha256[:-1]).sealed(),
    "truncated file": truncated,
    "flipped bit": flipped_bit,
    "missing file": lambda good: replace(good, path=good.path + ".gone").sealed(),
    "not a number": not_finite,
    "infinite": lambda good: not_finite(good, float("inf")),
}
