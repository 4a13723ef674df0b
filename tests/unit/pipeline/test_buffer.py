"""Admission and batch cutting: the staleness bound, nothing lost, nothing twice."""

from __future__ import annotations

import random

import anyio
import pytest

from fd_async.pipeline.buffer import RolloutBuffer

pytestmark = pytest.mark.anyio


def make_buffer(*, batch: int = 2, max_staleness: int = 1, group_size: int = 1, min_items: int = 1, version: int = 0):
    return RolloutBuffer[str](
        batch=batch,
        max_staleness=max_staleness,
        group_size=group_size,
        min_items=min_items,
        version=version,
        last_version=1000,
    )


async def blocks(operation) -> bool:
    with anyio.move_on_after(0.02) as scope:
        await operation
    return scope.cancelled_caught


async def test_admits_s_plus_one_batches_before_the_first_step() -> None:
    """Capacity at version 0 is (S + 1) * B."""
    buffer = make_buffer(batch=2, max_staleness=1)
    for ordinal in range(4):
        assert await buffer.admit(ordinal) == 0
    assert await blocks(buffer.admit(4))


async def test_publishing_frees_one_batch() -> None:
    """A new version admits B more groups, which start under it."""
    buffer = make_buffer(batch=2, max_staleness=0)
    await buffer.admit(0)
    await buffer.admit(1)
    for ordinal in (0, 1):
        await buffer.ready(ordinal, "x")
    await buffer.cut()
    assert await blocks(buffer.admit(2))
    await buffer.publish(1)
    assert await buffer.admit(2) == 1


async def test_a_batch_of_newer_groups_waits_where_the_older_ones_would_overflow_the_last_batch_in_time() -> None:
    """B = 1, S = 2: of three groups of version 0 two are left at version 1, and only two batches take them in time."""
    buffer = make_buffer(batch=1, max_staleness=2)
    for ordinal in range(3):
        assert await buffer.admit(ordinal) == 0
    await buffer.ready(0, "x")
    await buffer.cut()
    await buffer.publish(1)
    assert await buffer.admit(3) == 1
    await buffer.ready(3, "newer")
    assert await blocks(buffer.cut())
    await buffer.ready(2, "older")
    assert [group.ordinal for group in await buffer.cut()] == [2]


async def test_learner_waits_for_a_slow_group_instead_of_exceeding_the_bound() -> None:
    """Group 0 is slow: batch 0 may pass it, batch 1 must contain it (S = 1)."""
    buffer = make_buffer(batch=2, max_staleness=1)
    for ordinal in range(4):
        await buffer.admit(ordinal)
    for ordinal in (1, 2, 3):
        await buffer.ready(ordinal, "x")
    assert [group.ordinal for group in await buffer.cut()] == [1, 2]
    await buffer.publish(1)
    await buffer.admit(4)
    await buffer.ready(4, "x")
    assert await blocks(buffer.cut())
    await buffer.ready(0, "x")
    assert [group.ordinal for group in await buffer.cut()] == [0, 3]


async def test_dropped_group_gives_its_slot_back() -> None:
    """A drop frees capacity, so the batch can still fill."""
    buffer = make_buffer(batch=1, max_staleness=0)
    await buffer.admit(0)
    assert await blocks(buffer.admit(1))
    assert await buffer.drop(0) == []
    assert await buffer.admit(1) == 0


async def test_group_below_min_items_is_handed_back_whole() -> None:
    """GRPO cannot compare one attempt with itself; its caller drops the remainder by name."""
    buffer = make_buffer(batch=1, group_size=2, min_items=2)
    await buffer.admit(0)
    await buffer.ready(0, "kept")
    assert await buffer.drop(0) == ["kept"]
    assert buffer.num_outstanding == 0


async def test_restored_groups_count_as_admitted() -> None:
    """A resume admits no burst: queued groups take their slots first."""
    buffer = make_buffer(batch=2, max_staleness=0, version=3)
    await buffer.restore(10, 7, 0, ["a"], generating=0)
    await buffer.restore(11, 2, 1, [], generating=1)
    assert buffer.capacity == 0
    await buffer.ready(11, "b")
    assert [group.admitted_version for group in await buffer.cut()] == [2, 3]


async def test_nothing_is_admitted_beyond_the_last_step() -> None:
    """The last batch is not followed by attempts that nobody trains."""
    buffer = RolloutBuffer[str](batch=2, max_staleness=5, group_size=1, min_items=1, version=0, last_version=1)
    await buffer.admit(0)
    await buffer.admit(1)
    assert await blocks(buffer.admit(2))


async def test_sync_barrier_waits_for_every_rollout_of_the_batch() -> None:
    """No feedback starts before the last rollout has ended."""
    buffer = make_buffer(batch=2, max_staleness=0)
    await buffer.admit(0)
    assert await blocks(buffer.wait_all_generated())
    await buffer.admit(1)
    await buffer.generated()
    assert await blocks(buffer.wait_all_generated())
    await buffer.generated()
    await buffer.wait_all_generated()


@pytest.mark.parametrize("seed", range(8))
async def test_random_schedules_keep_the_bound_and_train_every_group_once(seed: int) -> None:
    """Whatever finishes when, staleness stays <= S, no admitted group is lost, none is trained twice."""
    rng = random.Random(seed)
    batch, bound, steps = rng.randint(1, 4), rng.randint(0, 3), 25
    buffer = RolloutBuffer[int](
        batch=batch, max_staleness=bound, group_size=1, min_items=1, version=0, last_version=steps
    )
    trained: list[int] = []
    dropped: set[int] = set()

    async def attempt(ordinal: int) -> None:
        for _ in range(rng.choice([0, 1, 1, 2, 40])):
            await anyio.lowlevel.checkpoint()
        if rng.random() < 0.1:
            dropped.add(ordinal)
            await buffer.drop(ordinal)
        else:
            await buffer.ready(ordinal, ordinal)

    async with anyio.create_task_group() as tasks:

        async def produce() -> None:
            ordinal = 0
            while True:
                await buffer.admit(ordinal)
                tasks.start_soon(attempt, ordinal)
                ordinal += 1

        tasks.start_soon(produce)
        with anyio.fail_after(10):
            for step in range(steps):
                groups = await buffer.cut()
                assert len(groups) == batch
                assert all(step - group.admitted_version <= bound for group in groups)
                trained += [group.ordinal for group in groups]
                await anyio.lowlevel.checkpoint()
                await buffer.publish(step + 1)
        tasks.cancel_scope.cancel()
    assert len(trained) == len(set(trained)) == batch * steps
    assert set(trained) | dropped == set(range(max(trained) + 1))
    assert buffer.num_outstanding == 0


async def test_a_resume_starts_no_burst() -> None:
    """What the ledger brings back takes its slots: new prompts wait until steps have made room again."""
    buffer = make_buffer(batch=2, max_staleness=1, version=5)
    for ordinal in range(7):  # more than the four that may be under way
        await buffer.restore(ordinal, 5, 1, [], generating=1)
    assert buffer.capacity == -3
    assert await blocks(buffer.admit(7))
    for ordinal in range(7):
        await buffer.ready(ordinal, "x")
    for version in (6, 7):
        await buffer.cut()
        await buffer.publish(version)
    assert await buffer.admit(7) == 7
    assert await blocks(buffer.admit(8))


async def test_every_change_is_noted_in_its_order() -> None:
    """A listener hears what the buffer is, and then what happens to it."""
    notes: list[tuple[str, str, int]] = []
    buffer = make_buffer(batch=1, max_staleness=0)
    buffer.listen(lambda *note: notes.append(note))
    await buffer.admit(0)
    await buffer.drop(0)
    await buffer.admit(1)
    await buffer.ready(1, "x")
    await buffer.give_back(await buffer.cut())
    await buffer.cut()
    await buffer.publish(1)
    await buffer.restore(9, 4, 1, ["x"], generating=0)
    kinds = "opened admitted dropped admitted ready cut given_back cut published restored"
    assert " ".join(kind for kind, _, _ in notes) == kinds
    assert notes[0] == ("opened", "1 0 1 1 1000", 0)
    assert notes[-1] == ("restored", "9 1 1", 4)


async def test_only_those_are_woken_whose_wait_is_over() -> None:
    """Restored attempts wait for a version; attempts that end do not touch them."""
    buffer = make_buffer(batch=1, max_staleness=0)
    begun: list[int] = []
    wakes = 0

    async def begin(version: int) -> None:
        await buffer.begin(version)
        begun.append(version)

    wait = buffer._published.wait

    async def counted() -> None:
        nonlocal wakes
        await wait()
        wakes += 1

    async with anyio.create_task_group() as tasks:
        buffer._published.wait = counted  # type: ignore[method-assign]
        for _ in range(100):
            tasks.start_soon(begin, 1)
        await buffer.admit(0)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        await buffer.ready(0, "x")
        await buffer.cut()
        await anyio.lowlevel.checkpoint()
        assert wakes == 0
        await buffer.publish(1)
    assert begun == [1] * 100
