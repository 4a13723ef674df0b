"""What the run does when the engine refuses a push, or breaks under one."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from fd_async.errors import EngineError, PushFailed, PushRefused, first_cause
from tests.fakes.control_plane import Bench, make_config

pytestmark = pytest.mark.anyio


async def test_a_refused_push_is_staged_afresh_and_offered_once_more(tmp_path: Path) -> None:
    """A flipped bit in the staged file costs a second staging, not the run."""
    bench = Bench(make_config(), tmp_path)
    offered: list[int] = []

    def refuse_once(version: int) -> None:
        offered.append(version)
        if offered.count(version) == 1 and version in (0, 3):
            raise PushRefused("sha256")

    bench.engine.on_push = refuse_once
    assert await bench.run() == 0
    assert offered == [0, 0, 1, 2, 3, 3, 4, 5, 6]
    assert sorted(bench.trained) == [f"train-{i:07d}-00" for i in range(24)]


@pytest.mark.parametrize("error", [PushRefused("refused for good"), PushFailed("the weights are in doubt")])
async def test_a_push_that_cannot_succeed_ends_the_run_with_its_own_line(tmp_path: Path, error: EngineError) -> None:
    """Nothing hangs: attempts that run are ended, and the reason is the push's, in one line, with its exit code."""
    bench = Bench(make_config(), tmp_path)

    def fail(version: int) -> None:
        if version == 2:
            raise error

    bench.engine.on_push = fail
    bench.runner.duration_s = lambda ticket: 0.001 if ticket.ordinal < 12 else 3600.0
    with anyio.fail_after(20), pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert first_cause(caught.value) is error
    assert error.exit_code == 5
