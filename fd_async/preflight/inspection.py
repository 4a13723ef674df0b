"""The order of fd-check: the process, then what it needs, then the verifier's parts, then the verifier itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fd_async.config.schema import RunConfig
from fd_async.preflight import compilers, costs, dataset, disk, gpus, lean, learner, machine, model, network
from fd_async.preflight.findings import Finding

_ROOMS = (machine, model, gpus, compilers, learner, disk, dataset, network, costs, lean)


def inspect(config: RunConfig) -> list[Finding]:
    """Look at everything the configuration needs; starts nothing heavy."""
    return [finding for room in _ROOMS for probe in room.PROBES for finding in probe(config)]


def try_verifier(config: RunConfig, say: Callable[[str], None]) -> Iterator[Finding]:
    """Have the configured verifier judge its canaries, unless a part of it is missing; blocks, and says so before."""
    lacking = [f.name for probe in lean.PROBES for f in probe(config) if f.state == "missing" and f.name != "rg"]
    if lacking:
        yield Finding("note", "canaries", "not tried", f"first get {', '.join(lacking)}")
        return
    how_long = "; loading Mathlib takes up to a minute" if "import Mathlib" in config.verifier.header else ""
    say(f"trying the verifier ({config.verifier.backend}){how_long} ...")
    from fd_async.preflight.canaries import judge_canaries  # the verifier and its event loop are only needed here

    yield from judge_canaries(config.verifier)
