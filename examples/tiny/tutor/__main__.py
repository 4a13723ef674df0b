"""Serve the tutor of the tiny world: `python -m examples.tiny.tutor --port 8020`, then in another terminal

bin/fd-run --config configs/tiny_fd.toml --config configs/feedback/tiny_tutor.toml
"""

from __future__ import annotations

import argparse
import sys

import anyio

from examples.tiny.tutor.server import serve_tutor

PORT = 8020


async def serve(port: int, named_share: float, seed: int) -> None:
    """Serve until the process is ended."""
    async with serve_tutor(port, named_share=named_share, seed=seed) as address:
        print(f"The tutor answers at {address}; Ctrl-C ends it.", flush=True)
        await anyio.sleep_forever()


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.tiny.tutor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"on 127.0.0.1 (default {PORT}); 0 takes a free one")
    parser.add_argument("--named-share", type=float, default=0.8, help="share of answers that name the right recipe")
    parser.add_argument("--seed", type=int, default=0, help="changes which questions get which words")
    given = parser.parse_args()
    if not 0 <= given.named_share <= 1:
        parser.error(f"--named-share is {given.named_share}; it must lie between 0 and 1")
    try:
        anyio.run(serve, given.port, given.named_share, given.seed)
    except KeyboardInterrupt:
        return 130
    except (OSError, OverflowError) as error:
        print(f"--port {given.port}: {error}; take another port", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
