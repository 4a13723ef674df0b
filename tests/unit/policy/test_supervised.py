"""An engine that is opened again when it is lost: what its callers notice of it, which is nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from fd_async.config.schema import Policy
from fd_async.errors import EngineDied, EngineError, PushFailed, PushRefused
from fd_async.policy.supervised import SupervisedEngine, supervised
from fd_async.types import Completion, StagedWeights, VersionSpan
from tests.fakes.mortal_engine import Opener, Plan, no_start
from tests.unit.policy.test_manifest import staged

pytestmark = pytest.mark.anyio
__all__ = ["staged"]
CONFIG = Policy(max_restarts=3, push_timeout_s=30)
STOP = 99
PROMPT = [7, 7, 7]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open the next engine at once."""
    monkeypatch.setattr("fd_async.policy.supervised._PAUSE_S", 0.0)
    monkeypatch.setattr("fd_async.policy.supervised._DEATH_FOLLOWS_S", 0.01)
    monkeypatch.setattr("fd_async.policy.supervised._CAUSE_FOLLOWS_S", 0.01)


class World:
    """A supervised engine, who opens for it, and what it told."""

    def __init__(self, engine: SupervisedEngine, opener: Opener, events: list[tuple[str, str]]) -> None:
        self.engine, self.opener, self.events = engine, opener, events
        self.completions: list[Completion] = []
        self.salvaged: list[Completion] = []

    async def generate(self, max_tokens: int = 8, seed: int | None = None) -> Completion:
        completion = await self.engine.generate(
            PROMPT,
            max_tokens=max_tokens,
            temperature=1.0,
            top_p=1.0,
            request_id="r",
            seed=seed,
            salvage=self.salvaged.append,
        )
        self.completions.append(completion)
        return completion

    async def lose(self, cause: str = "killed") -> None:
        """Have the present engine die and let everybody act on it."""
        self.opener.last.die(cause)
        await anyio.wait_all_tasks_blocked()


@asynccontextmanager
async def opened(*plans: Plan, config: Policy = CONFIG) -> AsyncIterator[World]:
    opener, events = Opener(*plans), []
    with anyio.fail_after(20):
        async with supervised(
            opener,
            config,
            stop_token_ids=[STOP],
            log="logs/vllm.log",
            on_event=lambda kind, line: events.append((kind, line)),
        ) as engine:
            yield World(engine, opener, events)
    assert opener.num_open == 0


def numbers(start: int, count: int, *spans: VersionSpan, reason: Any = "length") -> Completion:
    """Return what a request gets that is served without a gap."""
    ids = list(range(start, start + count))
    return Completion(
        token_ids=ids,
        logprobs=[-float(i) for i in ids],
        spans=list(spans or [VersionSpan(0, 0, count)]),
        finish_reason=reason,
    )


async def test_a_request_goes_on_from_its_tokens() -> None:
    """Two deaths on the way: one completion without a gap, and each engine is asked only for what is missing."""
    async with opened(Plan(sampled=3), Plan(sampled=2), Plan()) as world:
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate)
            await anyio.wait_all_tasks_blocked()
            await world.lose()
            await world.lose()
        assert world.completions == [numbers(3, 8)]
        assert [len(asked["prompt_ids"]) for engine in world.opener.engines for asked in engine.asked] == [3, 6, 8]
        assert [asked["max_tokens"] for engine in world.opener.engines for asked in engine.asked] == [8, 5, 3]
        assert world.salvaged == []
        assert [kind for kind, _ in world.events] == ["engine_died", "engine_restarted"] * 2
        assert world.opener.engines[0].is_killed


@pytest.mark.parametrize(("max_tokens", "reason"), [(4, "length"), (200, "stop")])
async def test_an_engine_that_died_after_the_last_token_is_not_asked_again(max_tokens: int, reason: str) -> None:
    """Only the news of the end is missing, which the tokens tell themselves."""
    sampled = 4 if reason == "length" else STOP - len(PROMPT) + 1
    async with opened(Plan(sampled=sampled), Plan()) as world:
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate, max_tokens)
            await anyio.wait_all_tasks_blocked()
            await world.lose()
        assert world.completions == [numbers(3, sampled, reason=reason)]
        assert world.opener.last.asked == []


async def test_a_request_without_a_token_starts_afresh() -> None:
    """With the same seed; a later part has one of its own, or it would repeat the random numbers of the first."""
    async with opened(Plan(sampled=0), Plan(sampled=2), Plan()) as world:
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate, 8, 5)
            await anyio.wait_all_tasks_blocked()
            await world.lose()
            await world.lose()
        assert world.completions == [numbers(3, 8)]
        first, second, third = (engine.asked[0]["seed"] for engine in world.opener.engines)
        assert first == second == 5 != third


async def test_versions_of_a_joined_completion_are_those_of_its_parts(staged: StagedWeights) -> None:
    """A span ends where the version changes, not where the engine did."""
    async with opened(Plan(sampled=3), Plan(sampled=2), Plan()) as world:
        await world.engine.push(replace(staged, version=1))
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate)
            await anyio.wait_all_tasks_blocked()
            await world.lose()
            await world.engine.push(replace(staged, version=2))
            await world.lose()
        assert world.completions == [numbers(3, 8, VersionSpan(1, 0, 5), VersionSpan(2, 5, 8))]


async def test_what_was_sampled_can_be_read_and_saved_over_a_restart() -> None:
    """Whether an engine runs or not, tokens of all parts are told, in one piece."""
    async with opened(Plan(sampled=3), Plan(sampled=2)) as world, anyio.create_task_group() as group:
        group.start_soon(world.generate)
        await anyio.wait_all_tasks_blocked()
        assert world.engine.partial("r") == numbers(3, 3, reason="abort")
        world.opener.may_open = anyio.Event()
        await world.lose()
        assert world.engine.partial("r") == numbers(3, 3, reason="abort")
        assert world.engine.statistics()["waiting"] == 1
        world.opener.may_open.set()
        await anyio.wait_all_tasks_blocked()
        assert world.engine.partial("r") == numbers(3, 5, reason="abort")
        group.cancel_scope.cancel()
    assert world.salvaged == [numbers(3, 5, reason="abort")]
    assert world.engine.partial("r") is None


async def test_cancelling_a_request_that_waits_for_an_engine_saves_its_tokens() -> None:
    """Nobody else has them any more."""
    async with opened(Plan(sampled=3)) as world, anyio.create_task_group() as group:
        group.start_soon(world.generate)
        await anyio.wait_all_tasks_blocked()
        world.opener.may_open = anyio.Event()
        await world.lose()
        group.cancel_scope.cancel()
    assert world.salvaged == [numbers(3, 3, reason="abort")]


async def test_calls_while_no_engine_runs_wait_for_the_next() -> None:
    """Requests, scores and statistics alike; a score that met the death is asked again."""
    scores: list[list[float]] = []
    async with opened(Plan(sampled=0), Plan()) as world:

        async def score() -> None:
            scores.append(await world.engine.score([1, 2]))

        async with anyio.create_task_group() as group:
            group.start_soon(score)
            await anyio.wait_all_tasks_blocked()
            world.opener.may_open = anyio.Event()
            await world.lose()
            group.start_soon(world.generate)
            await anyio.wait_all_tasks_blocked()
            assert (scores, world.completions, world.engine.pids) == ([], [], [])
            assert world.engine.statistics() == {
                "running": 0.0,
                "waiting": 1.0,
                "kv_usage": 0.0,
                "tokens_generated": 0.0,
                "restarts": 0.0,
                "serving": 0.0,
            }
            world.opener.may_open.set()
        assert (scores, world.completions) == ([[0.0]], [numbers(3, 8)])


async def test_tokens_are_counted_over_all_engines() -> None:
    """The figure never falls, in the moment of the death neither."""
    async with opened(Plan(sampled=3), Plan()) as world:
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate)
            await anyio.wait_all_tasks_blocked()
            assert world.engine.statistics()["tokens_generated"] == 3
            world.opener.may_open = anyio.Event()
            await world.lose()
            assert world.engine.statistics()["tokens_generated"] == 3
            world.opener.may_open.set()
        figures = world.engine.statistics()
        assert (figures["tokens_generated"], figures["restarts"]) == (8, 1)


async def test_the_last_weights_are_there_before_any_request(staged: StagedWeights) -> None:
    """The version stays what it was; the first engine needs none."""
    async with opened(Plan(), Plan()) as world:
        await world.generate()
        await world.engine.push(replace(staged, version=4))
        await world.lose()
        assert world.opener.last.pushed == [4]
        assert (await world.generate()).spans == [VersionSpan(4, 0, 8)]
        assert world.engine.weight_version == 4


async def test_weights_that_are_gone_are_waited_for(staged: StagedWeights) -> None:
    """The learner removed them because it stages others; requests run when these have come."""
    async with opened(Plan(), Plan(pushes=[PushRefused("the file is gone")])) as world:
        await world.engine.push(replace(staged, version=1))
        async with anyio.create_task_group() as group:
            world.opener.last.die()
            group.start_soon(world.generate)
            await anyio.wait_all_tasks_blocked()
            assert world.completions == []
            assert world.engine.weight_version == 1
            await world.engine.push(replace(staged, version=2))
        assert world.completions == [numbers(3, 8, VersionSpan(2, 0, 8))]


async def test_a_learner_that_starts_anew_may_take_longer_than_a_push(staged: StagedWeights) -> None:
    """Its weights went with it: the engine is not to blame, and waits for those that it will bring."""
    config = replace(CONFIG, push_timeout_s=0.01, max_restarts=1)
    async with opened(Plan(), Plan(pushes=[PushRefused("the file is gone")]), config=config) as world:
        await world.engine.push(replace(staged, version=2))
        await anyio.Path(staged.path).unlink()
        async with anyio.create_task_group() as group:
            world.opener.last.die()
            group.start_soon(world.generate)
            await anyio.sleep(0.05)
            await world.engine.push(replace(staged, version=1))
        assert len(world.opener.engines) == 2
        assert world.completions == [numbers(3, 8, VersionSpan(1, 0, 8))]


async def test_weights_that_never_come_end_it_with_a_reason(staged: StagedWeights) -> None:
    """Not a wait without end."""
    config = replace(CONFIG, push_timeout_s=0.01, max_restarts=1)

    async def wait() -> None:
        async with opened(Plan(), Plan(pushes=[PushRefused("the file differs")]), config=config) as world:
            await world.engine.push(staged)
            world.opener.last.die()
            await world.generate()

    with pytest.raises(EngineDied, match=r"the file differs.* no others came within policy\.push_timeout_s = 0\.01 s"):
        await wait()


@pytest.mark.parametrize("failure", [EngineDied("gone"), PushFailed("in doubt")])
async def test_a_push_that_meets_the_death_is_made_again(staged: StagedWeights, failure: EngineError) -> None:
    """The caller's push succeeds; running requests never see weights that are in doubt."""
    async with opened(Plan(sampled=3, pushes=[None, failure]), Plan()) as world:
        await world.engine.push(replace(staged, version=1))
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate)
            await anyio.wait_all_tasks_blocked()
            report = await world.engine.push(replace(staged, version=2))
        assert (report.version, world.engine.weight_version) == (2, 2)
        assert world.opener.last.pushed[-1] == 2
        assert world.completions[0].token_ids == numbers(3, 8).token_ids
        assert world.events[0] == ("engine_died", str(failure))


async def test_a_refused_push_stays_refused(staged: StagedWeights) -> None:
    """Nothing changed, so nothing is restarted, and what is brought back later are the weights before it."""
    async with opened(Plan(pushes=[None, PushRefused("a tensor is missing")]), Plan()) as world:
        await world.engine.push(replace(staged, version=1))
        with pytest.raises(PushRefused, match="a tensor is missing"):
            await world.engine.push(replace(staged, version=2))
        assert world.events == []
        await world.lose()
        assert world.opener.last.pushed == [1]


async def test_too_many_deaths_end_it_with_one_line(staged: StagedWeights) -> None:
    """How often, why, where to read more; a successful push begins the count anew, what is pushed back does not."""
    message = (
        r"^vLLM was lost: 3 times without a successful push between \(policy\.max_restarts = 2\); "
        r"last: killed again; see logs/vllm\.log$"
    )

    async def die() -> None:
        async with opened(Plan(), config=replace(CONFIG, max_restarts=2)) as world:
            for _ in range(2):
                await world.lose()
                await world.lose()
                await world.engine.push(staged)
            await world.lose()
            await world.lose()
            assert world.opener.last.pushed == [staged.version]
            await world.lose("killed again")
            pytest.fail("the block goes on")

    with pytest.raises(EngineDied, match=message):
        await die()


async def test_calls_that_wait_are_told_of_the_end() -> None:
    """None of them hangs, and none gets an answer."""
    failures: list[Exception] = []
    worlds: list[World] = []

    async def fails(call: Awaitable[Any]) -> None:
        with anyio.CancelScope(shield=True):  # as in a caller's own clean-up
            try:
                await call
            except EngineDied as error:
                failures.append(error)

    async def die() -> None:
        async with opened(Plan(sampled=3), config=replace(CONFIG, max_restarts=0)) as world:
            worlds.append(world)
            async with anyio.create_task_group() as group:
                group.start_soon(fails, world.generate())
                group.start_soon(fails, world.engine.score([1, 2]))
                await anyio.wait_all_tasks_blocked()
                world.opener.last.die()

    with pytest.raises(EngineDied, match=r"once .*max_restarts = 0"):
        await die()
    assert [str(error).startswith("vLLM was lost: once") for error in failures] == [True, True]
    assert worlds[0].salvaged == [numbers(3, 3, reason="abort")]


async def test_a_start_that_fails_counts_as_a_death() -> None:
    """And is tried again."""
    async with opened(Plan(), no_start(), Plan()) as world:
        await world.lose()
        assert await world.generate() == numbers(3, 8)
        assert ("engine_died", "the restart failed: vLLM did not start: no memory") in world.events


async def test_starts_that_go_on_failing_end_it() -> None:
    """With the reason of the last."""

    async def die() -> None:
        async with opened(Plan(), no_start(), config=replace(CONFIG, max_restarts=2)) as world:
            await world.lose()
            await world.generate()

    with pytest.raises(EngineDied, match=r"3 times .*: vLLM did not start: no memory"):
        await die()


async def test_a_first_start_that_fails_is_told_as_it_is() -> None:
    """Nothing ran yet: the reason is the configuration or the machine."""
    with pytest.raises(EngineError, match=r"^vLLM did not start: no memory$"):
        async with opened(no_start()):
            pytest.fail("the block is entered")


async def test_requests_that_vllm_gave_up_at_its_end_go_on() -> None:
    """Told to end by SIGTERM, vLLM aborts what runs before its processes end."""
    async with opened(Plan(sampled=3, gives_up=True), Plan()) as world:
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate)
            await anyio.lowlevel.checkpoint()
            world.opener.last.die()
        assert world.completions == [numbers(3, 8)]


async def test_a_request_that_vllm_gave_up_alone_is_told() -> None:
    """The engine lives: the caller has to know."""
    async with opened(Plan(sampled=3, gives_up=True)) as world:
        assert await world.generate() == numbers(3, 3, reason="abort")


async def test_a_group_that_cannot_be_joined_again_ends_the_run(staged: StagedWeights) -> None:
    """The learner's NCCL group holds the dead workers for good."""

    async def die() -> None:
        async with opened(Plan(), config=replace(CONFIG, push="nccl")) as world:
            await world.engine.push(staged)
            await world.lose()
            pytest.fail("the block goes on")

    with pytest.raises(EngineDied, match=r'policy\.push = "nccl" cannot take a new engine'):
        await die()


async def test_leaving_the_block_ends_a_restart() -> None:
    """Nothing opens any more."""
    async with opened(Plan()) as world:
        world.opener.may_open = anyio.Event()
        await world.lose()
        assert world.opener.num_open == 0
    assert len(world.opener.engines) == 1


async def test_an_error_of_the_block_comes_out_as_it_is() -> None:
    """Not wrapped into a group."""
    with pytest.raises(KeyError, match="mine"):
        async with opened(Plan()):
            raise KeyError("mine")
