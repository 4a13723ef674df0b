"""The statements, read as a run reads them. Sources on the hub are left to the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from fd_async.config.places import evaluated, parse_place
from fd_async.config.schema import RunConfig
from fd_async.data.statements import read_statements
from fd_async.errors import ConfigError, PreflightError
from fd_async.preflight.findings import Finding

_MOST_BYTES = 64 << 20
"""A larger file is not read here: this must answer at once."""


def _statements(config: RunConfig) -> Iterator[Finding]:
    sources = {"data.train": config.data.train}
    sources |= {f"data.eval {Path(text).stem}": text for text in evaluated(config.data)}
    for name, text in sources.items():
        file = _plain_file(text)
        if file is None or config.data.columns:
            continue
        try:
            statements = read_statements(file)
        except PreflightError as error:
            yield Finding("missing", name, str(error), "correct or remove that row, or name another file")
            continue
        num_unproved = sum(not statement.proof for statement in statements)
        needs_proofs = config.algorithm.type == "fd" and config.feedback.type == "ground_truth"
        if name == "data.train" and needs_proofs and num_unproved:
            found = f"{num_unproved:,} of {len(statements):,} statements have no `proof`"
            yield Finding("missing", name, found, 'feedback.type = "ground_truth" needs one in every row')
        else:
            yield Finding("ok", name, f"{len(statements):,} statements in {text}")


def _plain_file(text: str) -> Path | None:
    """Return the path of a JSONL file of moderate size without filters; None for every other source."""
    try:
        place = parse_place(text) if text else None
    except ConfigError:
        return None
    if place is None or place.base != text or not place.is_local or Path(text).suffix not in (".jsonl", ".json"):
        return None
    return Path(text) if Path(text).is_file() and Path(text).stat().st_size <= _MOST_BYTES else None


PROBES: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (_statements,)
"""In the order of the report."""
