"""Admission: never above a limit, nobody starves, the oldest first, never stuck, one release each."""

from __future__ import annotations

import random
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_async.pipeline.admission import CALM_S, READING_S, Admission, KvLimit
from tests.fakes.control_plane import make_config

pytestmark = pytest.mark.anyio


class Says:
    """A part that says how full it is."""

    def __init__(self, **statistics: float) -> None:
        self.said: dict[str, float] = statistics

    def statistics(self) -> dict[str, float]:
        return self.said


class Slots:
    """A buffer with as many slots as one likes."""

    capacity = 1
    num_unresolved = 2


class World:
    """An admission among stand-ins, and the attempts in it."""

    def __init__(
        self,
        engine: dict[str, float] | None = None,
        provider: dict[str, float] | None = None,
        **tables: dict[str, Any],
    ) -> None:
        self.slots = Slots()
        self.engine = Says(**engine or {"kv_usage": 0.0, "running": 0.0, "waiting": 0.0})
        self.verifier = Says(waiting=0.0)
        self.provider = Says(**provider or {"usd": 0.0})
        config = make_config(**{"verifier": {"workers": 2}, **tables})
        self.admission = Admission(
            config, slots=self.slots, engine=self.engine, verifier=self.verifier, provider=self.provider
        )
        self.started: list[int] = []
        self.ends: dict[int, anyio.Event] = {}

    async def attempt(self, ordinal: int, *, continued: bool = False) -> None:
        self.ends[ordinal] = anyio.Event()
        async with self.admission.attempt(ordinal, continued=continued):
            self.started.append(ordinal)
            await self.ends[ordinal].wait()

    def reread(self) -> None:
        """Let the next decision ask the parts again, as it does after a moment."""
        self.admission._read_at -= READING_S

    async def settle(self) -> None:
        for _ in range(6):
            await anyio.lowlevel.checkpoint()


async def test_the_oldest_starts_first_and_continued_ones_before_all() -> None:
    """Whoever came first waits behind an older prompt, and behind what has begun before."""
    world = World(rollout={"concurrency": 1})
    async with anyio.create_task_group() as tasks:
        for ordinal in (9, 5, 7):
            tasks.start_soon(world.attempt, ordinal)
            await world.settle()
        tasks.start_soon(lambda: world.attempt(8, continued=True))
        await world.settle()
        for ordinal in (9, 8, 5, 7):
            assert world.started[-1] == ordinal
            world.ends[ordinal].set()
            await world.settle()


@pytest.mark.parametrize(
    ("part", "full", "words"),
    [
        ("engine", {"kv_usage": 0.93, "running": 1.0, "waiting": 0.0}, "KV cache 93%"),
        ("verifier", {"waiting": 9.0}, "9 checks wait"),
        ("provider", {"usd": 0.0, "backlog_s": 901.0}, "feedback queued takes 901 s"),
        ("provider", {"usd": 9.5, "answered": 10.0}, "0.50 US dollars are left"),
    ],
)
async def test_what_is_full_holds_the_next_one_and_is_named(part: str, full: dict[str, float], words: str) -> None:
    """One is under way, the next waits until there is room again; status says for what."""
    world = World(feedback={"max_usd": 10.0})
    getattr(world, part).said = full
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.attempt, 0)
        await world.settle()
        assert world.started == [0], "nothing is under way: the first may always start"
        world.reread()
        tasks.start_soon(world.attempt, 1)
        await world.settle()
        assert world.started == [0]
        assert words in world.admission.binding
        assert world.admission.statistics()["waiting"] == 1
        getattr(world, part).said = {"kv_usage": 0.1, "running": 1.0, "waiting": 0.0, "usd": 0.0}
        world.reread()
        tasks.start_soon(world.admission.run)
        await world.settle()
        assert world.started == [0, 1]
        for end in world.ends.values():
            end.set()
        await world.settle()
        tasks.cancel_scope.cancel()


async def test_what_engine_and_provider_did_in_an_earlier_life_counts_for_nothing() -> None:
    """After a restart of the learner they serve on: old preemptions are no shortage, old answers no price."""
    world = World(
        engine={"kv_usage": 0.1, "running": 0.0, "waiting": 0.0, "preemptions": 7.0},
        provider={"usd": 6.0, "answered": 600.0},
        feedback={"max_usd": 10.0},
    )
    async with anyio.create_task_group() as tasks:
        for ordinal in range(3):
            tasks.start_soon(world.attempt, ordinal)
        await world.settle()
        assert world.started == [0, 1, 2]
        world.provider.said = {"usd": 9.0, "answered": 601.0}  # the first answer of this life cost 3 dollars
        world.reread()
        assert "1.00 US dollars are left" in world.admission.binding
        tasks.cancel_scope.cancel()


async def test_a_full_part_lets_one_at_a_time_through() -> None:
    """What never empties slows a run down and does not stop it."""
    world = World()
    world.verifier.said = {"waiting": 1e9}
    async with anyio.create_task_group() as tasks:
        for ordinal in range(4):
            tasks.start_soon(world.attempt, ordinal)
        await world.settle()
        for ordinal in range(4):
            assert world.started == list(range(ordinal + 1))
            world.ends[ordinal].set()
            await world.settle()


async def test_starts_between_two_readings_count_against_the_kv_cache() -> None:
    """A burst on one reading would fill the cache: what started since takes a mean share."""
    world = World()
    world.engine.said = {"kv_usage": 0.6, "running": 6.0, "waiting": 0.0}
    async with anyio.create_task_group() as tasks:
        for ordinal in range(20):
            tasks.start_soon(world.attempt, ordinal)
        await world.settle()
        assert len(world.started) == 5, "the one that always may, and 0.6 * (1 + started / 6) <= 0.9"
        tasks.cancel_scope.cancel()


async def test_new_tickets_wait_behind_those_at_the_gate() -> None:
    """`room` opens when nobody waits and one more may start."""
    world = World(rollout={"concurrency": 1})
    async with anyio.create_task_group() as tasks:
        await world.admission.room()
        tasks.start_soon(world.attempt, 0)
        tasks.start_soon(world.attempt, 1)
        await world.settle()
        opened = anyio.Event()

        async def ask() -> None:
            await world.admission.room()
            opened.set()

        tasks.start_soon(ask)
        for ordinal in (0, 1):
            await world.settle()
            assert not opened.is_set()
            world.ends[ordinal].set()
        await world.settle()
        assert opened.is_set()


async def test_staleness_is_named_when_only_slots_are_missing() -> None:
    """With all slots taken the learner is what the next ticket waits for."""
    world = World()
    world.slots.capacity = 0
    assert "admission.max_staleness = 1" in world.admission.binding
    world.slots.capacity = 1
    assert world.admission.binding == ""


def test_the_limit_is_cut_at_once_and_grows_slowly() -> None:
    """Preemptions, or a queue before a full cache, cut it to 0.8 of what runs; calm grows it by 5 %."""
    kv = KvLimit(100, 0.9)
    calm = {"kv_usage": 0.5, "waiting": 0.0, "preemptions": 0.0}
    kv.observe(0.0, calm, 100)
    assert kv.limit == 100
    kv.observe(1.0, calm | {"preemptions": 3.0}, 100)
    assert kv.limit == 80
    kv.observe(2.0, calm | {"preemptions": 3.0, "kv_usage": 0.95, "waiting": 4.0}, 60)
    assert kv.limit == 48
    kv.observe(3.0, calm | {"preemptions": 3.0}, 48)
    assert kv.limit == 48, "no growth so soon"
    kv.observe(2.0 + CALM_S, calm | {"preemptions": 3.0}, 48)
    assert kv.limit == 50
    kv.observe(2.5 + CALM_S, calm | {"preemptions": 3.0}, 50)
    assert kv.limit == 50, "once a second"
    kv.observe(99.0, calm | {"preemptions": 0.0}, 10)
    assert kv.limit == 50, "an engine that started anew counts from 0, and there is no need to grow"
    kv.observe(99.0, calm | {"preemptions": 1.0}, 0)
    assert kv.limit == 1


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), concurrency=st.integers(1, 5), attempts=st.integers(1, 25), is_full=st.booleans())
async def test_whatever_fills_and_whoever_is_cancelled_all_start_once_within_the_limits(
    seed: int, concurrency: int, attempts: int, is_full: bool
) -> None:
    """Random loads, ends and cancellations: never above a limit, in order, none lost, no place lost, never stuck."""
    rng = random.Random(seed)
    world = World(rollout={"concurrency": concurrency})
    world.engine.said["kv_usage"] = 0.95 if is_full else 0.1
    admission, under_way, started, cancelled = world.admission, 0, list[int](), set[int]()

    async def attempt(ordinal: int, scope: anyio.CancelScope) -> None:
        nonlocal under_way
        with scope:
            async with admission.attempt(ordinal):
                under_way += 1
                started.append(ordinal)
                assert under_way <= (1 if is_full else concurrency)
                try:
                    for _ in range(rng.randint(0, 12)):
                        await anyio.lowlevel.checkpoint()
                finally:
                    under_way -= 1
        if scope.cancelled_caught:
            cancelled.add(ordinal)

    scopes = [anyio.CancelScope() for _ in range(attempts)]
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for ordinal, scope in enumerate(scopes):
                tasks.start_soon(attempt, ordinal, scope)
            for _ in range(60):
                await anyio.lowlevel.checkpoint()
                if rng.random() < 0.2:
                    world.verifier.said = {"waiting": rng.choice([0.0, 99.0])}
                    world.reread()
                if rng.random() < 0.1:
                    rng.choice(scopes).cancel()
            world.verifier.said = {"waiting": 0.0}
    assert set(started) | cancelled == set(range(attempts))
    assert len(started) == len(set(started))
    assert started == sorted(started), "all were at the gate from the start, so they go in order"
    assert under_way == admission.statistics()["under_way"] == admission.statistics()["waiting"] == 0
