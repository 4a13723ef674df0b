"""The door of this room: one way to open whatever `policy.engine` names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from fd_async.config.schema import RunConfig
from fd_async.policy.engine import Engine
from fd_async.policy.local import LocalEngine, open_engine
from fd_async.policy.supervised import supervised


def _say_nothing(kind: str, text: str) -> None:
    """Stand in for a listener."""


@asynccontextmanager
async def open_policy(
    config: RunConfig,
    *,
    stop_token_ids: list[int],
    log_dir: Path,
    frozen: bool = False,
    on_event: Callable[[str, str], None] = _say_nothing,
) -> AsyncIterator[Engine]:
    """Open the engine of a run for the length of the block.

    Args:
        config: of the run.
        stop_token_ids: a completion ends after any of these.
        log_dir: gets vLLM's log.
        frozen: takes no pushes.
        on_event: told of what people want to know, as (kind, one line): an engine died, came back, a server left.

    Raises:
        EngineError: it did not start, or died for good.
    """
    if config.policy.engine == "servers" and not frozen:
        from fd_async.policy.servers import open_servers

        async with open_servers(config, stop_token_ids=stop_token_ids, log_dir=log_dir, on_event=on_event) as servers:
            yield servers
        return

    def open_one() -> AbstractAsyncContextManager[LocalEngine]:
        return open_engine(
            config.model.path,
            config.policy,
            dtype=config.model.dtype,
            seed=config.run.seed,
            stop_token_ids=stop_token_ids,
            log_dir=log_dir,
            frozen=frozen,
        )

    log = str(log_dir / ("vllm_frozen.log" if frozen else "vllm.log"))
    async with supervised(open_one, config.policy, stop_token_ids=stop_token_ids, log=log, on_event=on_event) as engine:
        yield engine
