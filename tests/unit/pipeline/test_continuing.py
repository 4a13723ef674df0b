"""Attempts that are cut off anywhere go on, in this process or another, as if nothing had happened."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from bench.crashes.history import read_history
from bench.crashes.life import make_config, run_life
from bench.crashes.plans import PROMPT_IDS, plan
from bench.crashes.standins import PlannedEngine, PlannedRenderer, PlannedVerifier
from fd_async.config.schema import RolloutTable
from fd_async.data.ledger import open_ledger
from fd_async.data.ledger.packing import pack, unpack_partial
from fd_async.errors import EngineDied
from fd_async.pipeline.checkpoints import forget_after
from fd_async.pipeline.recorder import Recorder
from fd_async.pipeline.signals import Stop
from fd_async.rollouts import RolloutRunner
from fd_async.types import PartialRollout, Rollout, Statement, Ticket, VersionSpan

pytestmark = pytest.mark.anyio

STATEMENT = Statement(name="t", formal_statement="theorem t : True :=")


class World:
    """A runner among stand-ins."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        self.engine = PlannedEngine(folder / "sampled.count", token_s=0.0)
        self.verifier = PlannedVerifier()
        self.kept: list[PartialRollout] = []
        self.runner = RolloutRunner(
            engine=self.engine,
            renderer=PlannedRenderer(),  # type: ignore[arg-type]
            verifier=self.verifier,  # type: ignore[arg-type]
            search=None,  # type: ignore[arg-type]
            config=msgspec.structs.replace(RolloutTable(), **keys),
        )

    async def run(self, ticket: Ticket, partial: PartialRollout | None = None) -> Rollout:
        return await self.runner.run(
            ticket, temperature=1.0, admitted_version=0, partial=partial, keep=self.kept.append
        )


def make_ticket(ordinal: int) -> Ticket:
    return Ticket(ordinal=ordinal, sample=0, purpose="train", statement=STATEMENT)


def timeless(rollout: Rollout) -> Rollout:
    """Return a rollout without its clocks and without the borders of equal versions."""
    turns = [msgspec.structs.replace(turn, seconds=0.0) for turn in rollout.turns]
    verdict = msgspec.structs.replace(rollout.verdict, seconds=0.0)
    return msgspec.structs.replace(rollout, turns=turns, verdict=verdict, seconds=0.0, generate_s=0.0, tool_s=0.0)


async def cut(world: World, ticket: Ticket, partial: PartialRollout | None, at: int) -> Rollout | None:
    """Run until `at` events (tokens arriving, files judged) have happened, then cancel."""
    with anyio.CancelScope() as scope:
        left = at

        def count(*_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                scope.cancel()

        world.engine.on_tokens = world.verifier.on_check = count
        return await world.run(ticket, partial)
    return None


@pytest.mark.parametrize("seed", range(12))
async def test_an_attempt_cut_anywhere_ends_like_one_that_nothing_cut(tmp_path: Path, seed: int) -> None:
    """Ids, log-probs, mask, spans, turns, verdict and file are the same; nothing is sampled twice."""
    rng = random.Random(seed)
    ticket = make_ticket(seed)
    whole = await World(tmp_path).run(ticket)
    partial: PartialRollout | None = None
    sampled, lives, rollout = 0, 0, None
    while rollout is None:
        world = World(tmp_path)
        rollout = await cut(world, ticket, partial, rng.randint(1, 12) if lives else 1)
        sampled += world.engine.tokens
        lives += 1
        if rollout is None and world.kept:
            partial = unpack_partial(*pack(world.kept[-1]))
            assert partial.num_sampled_tokens == sampled
    assert lives > 1
    assert timeless(rollout) == timeless(whole)
    assert rollout.num_sampled_tokens == sampled
    assert [path.name for path in tmp_path.iterdir()] == ["sampled.count"]  # noqa: ASYNC240


async def test_spans_tell_which_weights_sampled_what_across_a_cut(tmp_path: Path) -> None:
    """What was sampled before keeps its version; the rest has the one that serves then."""
    ticket = next(t for t in map(make_ticket, range(99)) if len(plan(t.id).turn_ends) == 1 and len(plan(t.id).ids) > 40)
    world = World(tmp_path)
    world.engine.weight_version = 3
    await cut(world, ticket, None, 2)
    later = World(tmp_path)
    later.engine.weight_version = 5
    rollout = await later.run(ticket, world.kept[-1])
    assert rollout.spans == [VersionSpan(3, 0, 16), VersionSpan(5, 16, len(plan(ticket.id).ids))]
    assert [turn.role for turn in rollout.turns] == ["assistant"]


@pytest.mark.parametrize("missing", [0, 1])
async def test_a_turn_whose_last_token_was_recorded_is_not_sampled_on(tmp_path: Path, missing: int) -> None:
    """A stop token or a full budget may be the last thing that was seen of a turn."""
    ticket = make_ticket(1)
    whole, end = plan(ticket.id), plan(ticket.id).turn_ends[0]
    length = end - missing
    partial = PartialRollout(
        id=ticket.id, ordinal=1, sample=0, admitted_version=0, prompt_ids=PROMPT_IDS, completion_ids=whole.ids[:length],
        logprobs=whole.logprobs[:length], spans=[VersionSpan(-1, 0, length)], turns=[],
    )  # fmt: skip
    world = World(tmp_path, max_response_tokens=length if missing else 8192)
    rollout = await world.run(ticket, partial)
    if missing:
        assert (rollout.end_reason, rollout.completion_ids) == ("token_budget", whole.ids[:length])
        assert world.engine.tokens == 0
    else:
        assert timeless(rollout) == timeless(await World(tmp_path).run(ticket))


async def test_the_deadline_counts_the_seconds_of_all_lives(tmp_path: Path) -> None:
    """An attempt that was slow before is not given its whole time again."""
    ticket = make_ticket(0)
    world = World(tmp_path)
    await cut(world, ticket, None, 1)
    partial = msgspec.structs.replace(world.kept[-1], seconds=100.0)
    rollout = await World(tmp_path, timeout_s=99.0).run(ticket, partial)
    assert (rollout.end_reason, rollout.failure) == ("failed", "timeout")
    assert rollout.num_sampled_tokens == partial.num_sampled_tokens
    assert rollout.seconds > 100


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        (lambda partial: partial, True),
        (lambda partial: msgspec.structs.replace(partial, prompt_ids=[1, 2, 3]), False),
        (lambda partial: msgspec.structs.replace(partial, completion_ids=[1] * 9000), False),
    ],
)
async def test_only_what_this_configuration_could_have_begun_goes_on(
    tmp_path: Path, change: Callable[[PartialRollout], PartialRollout], fits: bool
) -> None:
    """Another prompt or a smaller budget is another attempt."""
    world = World(tmp_path)
    await cut(world, make_ticket(0), None, 1)
    assert await world.runner.can_continue(make_ticket(0), change(world.kept[-1])) is fits


async def test_a_lost_engine_leaves_the_tokens_it_had_sampled(tmp_path: Path) -> None:
    """The engine's death ends the process's work, not the attempt."""
    world, ticket = World(tmp_path), make_ticket(2)

    def die(request_id: str, at: int) -> None:
        if at >= 16:
            raise EngineDied("gone")

    world.engine.on_tokens = die
    with pytest.raises(EngineDied):
        await world.run(ticket)
    assert list(world.kept[-1].completion_ids) == plan(ticket.id).ids[: len(world.kept[-1].completion_ids)]
    assert len(world.kept[-1].completion_ids) >= 16


async def test_attempts_that_sample_for_long_are_recorded_on_the_way(tmp_path: Path) -> None:
    """A kill costs what was sampled since; no turn has to end first."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        world = World(tmp_path)
        recorder = Recorder(ledger, world.runner, 0.02)
        world.engine._token_s = 0.005
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(recorder.run)
            for ordinal in range(3):
                tasks.start_soon(
                    lambda n: world.runner.run(make_ticket(n), temperature=1.0, admitted_version=7, keep=recorder.keep),
                    ordinal,
                )
            with anyio.fail_after(10):
                while len(ledger.partials()) < 3:  # noqa: ASYNC110
                    await anyio.sleep(0.02)
            partials = ledger.partials()
            tasks.cancel_scope.cancel()
    for partial in partials:
        assert list(partial.completion_ids) == plan(partial.id).ids[: len(partial.completion_ids)]
        assert (partial.admitted_version, partial.turns) == (7, [])


async def stop_soon(stop: Stop, seconds: float) -> None:
    await anyio.sleep(seconds)
    stop.request("SIGTERM")


@pytest.mark.parametrize("seed", range(2))
async def test_a_stop_costs_no_token(tmp_path: Path, seed: int) -> None:
    """What the engine sampled in all lives is what the ledger has, to the token; the run ends like any other."""
    config = make_config("grpo", 2)
    code, lives = 1, 0
    while code:
        stop = Stop(shutdown_s=20.0)
        async with anyio.create_task_group() as tasks:
            if lives < 2:
                tasks.start_soon(stop_soon, stop, random.Random(f"{seed} {lives}").uniform(0.05, 0.3))
            with anyio.fail_after(30):
                code = await run_life(config, tmp_path, tmp_path / "nobody-sells", stop)
            tasks.cancel_scope.cancel()
        assert code in (0, 130)
        lives += 1
        sampled = int.from_bytes((tmp_path / "sampled.count").read_bytes(), "little")
        async with open_ledger(tmp_path / "ledger.db") as ledger:
            begun = sum(partial.num_sampled_tokens for partial in ledger.partials())
            assert sum(ledger.tokens_by_outcome().values()) + begun == sampled
    history, broken = read_history(tmp_path, steps=2)
    assert (broken.skipped, broken.repeated, broken.other) == ([], [], [])
    assert history.sampled == sum(history.tokens.values())


@pytest.mark.parametrize("change", [{"prompt_ids": [99]}, {"sample": 99}], ids=["prompt", "group"])
async def test_an_attempt_that_nobody_continues_leaves_its_tokens_in_the_accounts(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """Its prompt has changed, or its group is smaller now: what was sampled is dropped by a named cause."""
    config = make_config("grpo", 2)
    ticket = msgspec.structs.replace(make_ticket(0), sample=change.get("sample", 0))
    stale = PartialRollout(
        id=ticket.id, ordinal=0, sample=ticket.sample, admitted_version=0,
        prompt_ids=change.get("prompt_ids", PROMPT_IDS), completion_ids=[5, 6],
        logprobs=[-1.0, -1.0], spans=[VersionSpan(0, 0, 2)], turns=[],
    )  # fmt: skip
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await ledger.put_partials([stale])
    with anyio.fail_after(30):
        assert await run_life(config, tmp_path, tmp_path / "nobody-sells", Stop(shutdown_s=20.0)) == 0
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        assert ledger.tokens_by_outcome()["dropped:config_changed"] == 2
        assert ticket.id not in [partial.id for partial in ledger.partials()]
    history, broken = read_history(tmp_path, steps=2)
    assert broken.skipped == broken.repeated == []
    first = make_ticket(0).id
    assert history.trained[0] == first or first not in history.trained


def test_a_resume_removes_what_a_kill_left_among_the_checkpoints(tmp_path: Path) -> None:
    """Also where no checkpoint will be written any more."""
    for name in (".step_000004.old.tmp", ".step_000006.tmp"):
        (tmp_path / name).mkdir()
    forget_after(tmp_path, 8)
    assert list(tmp_path.iterdir()) == []
