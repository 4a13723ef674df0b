"""The collector of cycles: quiet while a run goes on, as before when it is over."""

from __future__ import annotations

import gc

import anyio
import pytest

from fd_async.telemetry import garbage

pytestmark = pytest.mark.anyio


def full_collections() -> int:
    return gc.get_stats()[2]["collections"]


def test_only_young_objects_are_walked_inside() -> None:
    """Many lots of objects that stay cause no full collection; what there was before is frozen, and thawed again."""
    before = gc.get_threshold()
    kept: list[list[int]] = []
    with garbage.calm_collector():
        assert gc.get_freeze_count() > 0
        count = full_collections()
        kept.extend([number] for number in range(30 * garbage.YOUNG))
        assert full_collections() == count
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


async def test_everything_is_walked_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cycles that outlived their youth do not pile up."""
    monkeypatch.setattr(garbage, "FULL_EVERY_S", 0.001)
    count = full_collections()
    with anyio.move_on_after(0.1):
        await garbage.collect_now_and_then()
    assert full_collections() > count
