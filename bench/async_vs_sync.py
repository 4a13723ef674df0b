"""How much sooner does `async` mode reach the same step than `sync`, with a provider that answers in 5 s?

Both modes run the same tiny configuration against a local server that speaks the OpenAI protocol and answers every
request after 5 s; one engine serves both, one after the other.
"""

from __future__ import annotations

import os
import socket
import sys

import anyio

from bench.common import arguments, emit
from bench.experiments import configure, experiment, one_engine

DELAY_S = 5.0


async def run(quick: bool) -> None:
    """Measure and print."""
    steps, prompts = (3, 8) if quick else (12, 16)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    os.environ["FD_BENCH_KEY"] = "not-a-secret"
    command = [sys.executable, "-m", "tests.fakes.openai_server", "--port", str(port), "--delay", str(DELAY_S)]
    server = await anyio.open_process(command, stdout=None, stderr=None)
    sets = {
        "run.max_steps": steps,
        "learner.prompts_per_step": prompts,
        "rollout.concurrency": prompts * 8,
        "admission.max_staleness": 6,
        "eval.at_start": False,
        "eval.at_end": False,
        "eval.every_steps": 0,
        "checkpoint.every_steps": 0,
        "feedback.base_url": f"http://127.0.0.1:{port}/v1",
        "feedback.api_key_env": "FD_BENCH_KEY",
        "feedback.model": "fake",
        "feedback.concurrency": 256,
        "feedback.max_usd": 0.0,
    }
    seconds: dict[str, float] = {}
    try:
        await wait_for(port)
        overlay = ["configs/feedback/openai.toml"]
        async with one_engine(configure("configs/tiny_fd.toml", sets, overlay)) as (engine, _, folder):
            for mode in ("sync", "async"):
                config = configure("configs/tiny_fd.toml", sets | {"run.mode": mode}, overlay)
                outcome = await experiment(config, folder / mode, engine)
                seconds[mode] = outcome.last("time/elapsed_s")
                print(f"{mode}: {steps} steps in {seconds[mode]:.1f} s", file=sys.stderr, flush=True)
    finally:
        server.terminate()
        with anyio.CancelScope(shield=True):
            await server.aclose()
    emit(
        {
            "speedup": seconds["sync"] / seconds["async"],
            "sync_s": seconds["sync"],
            "async_s": seconds["async"],
            "steps": steps,
            "prompts_per_step": prompts,
            "feedback_delay_s": DELAY_S,
            "max_staleness": sets["admission.max_staleness"],
        }
    )


async def wait_for(port: int) -> None:
    """Wait until the server listens."""
    with anyio.fail_after(20):
        while True:
            try:
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
            except OSError:
                await anyio.sleep(0.1)
            else:
                return


if __name__ == "__main__":
    anyio.run(run, arguments(__doc__).quick)
