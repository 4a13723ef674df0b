"""The statements: local sources read as a run reads them, those of the hub looked for in the cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fd_async.config.places import Place, evaluated, parse_place, suite_name
from fd_async.config.schema import RunConfig
from fd_async.data.sources import Sources
from fd_async.data.sources.pinned import PINNED
from fd_async.errors import FdError
from fd_async.preflight.findings import Finding
from fd_async.preflight.model import HUB, hub_cache, is_offline
from fd_async.preflight.reaching import reach

_MOST_BYTES = 64 << 20
"""A larger file is left to the run: this must answer at once."""


def _statements(config: RunConfig) -> Iterator[Finding]:
    sources = Sources(config.data)
    named = {"data.train": config.data.train or f"{config.data.source}#train"}
    named |= {f"data.eval {suite_name(text)}": text for text in evaluated(config.data)}
    for name, text in named.items():
        place = parse_place(text)
        pinned = PINNED.get(place.base)
        if pinned is not None or not place.is_local:
            yield _cached(config, name, parse_place(pinned.address) if pinned else place)
        elif _is_large(Path(place.base).expanduser()):
            yield Finding("note", name, f"{text} is large", "not read here; bin/fd-data looks at every row")
        else:
            yield _read(config, name, text, sources)


def _read(config: RunConfig, name: str, text: str, sources: Sources) -> Finding:
    try:
        statements = sources.read(text, "train" if name == "data.train" else "test")
    except FdError as error:
        return Finding("missing", name, str(error), "correct or remove what it names, or take another source")
    num_unproved = sum(not statement.proof for statement in statements)
    needs_proofs = config.algorithm.type == "fd" and config.feedback.type == "ground_truth"
    if name == "data.train" and needs_proofs and num_unproved:
        found = f"{num_unproved:,} of {len(statements):,} statements have no `proof`"
        return Finding("missing", name, found, 'feedback.type = "ground_truth" needs one in every row')
    return Finding("ok", name, f"{len(statements):,} statements in {text}")


def _is_large(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > _MOST_BYTES


def _cached(config: RunConfig, name: str, place: Place) -> Finding:
    """Look for a data set of the hub where the hub's own library keeps it."""
    folder = hub_cache() / f"datasets--{place.repository.replace('/', '--')}" / "snapshots" / place.revision
    if (folder / place.file).exists() if place.file else any(folder.glob("**/*.*")):
        return Finding("ok", name, f"{place.repository} at {place.revision[:12]}, in the cache")
    cure = f"run bin/fd-data '{place.base}' where the internet is, and mount its HF_HOME"
    if config.data.offline or is_offline():
        found = f"{place.repository} is not in the cache, and data.offline or HF_HUB_OFFLINE forbids the hub"
        return Finding("missing", name, found, cure)
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    if problem := reach([endpoint])[endpoint]:
        return Finding("missing", name, f"{place.repository} is not in the cache; {endpoint}: {problem}", cure)
    return Finding("note", name, f"{place.repository} is not in the cache", "downloaded from the hub at the start")


PROBES: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (_statements,)
"""In the order of the report."""
