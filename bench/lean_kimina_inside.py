"""Drives the pool of a Kimina Lean Server from inside, without HTTP; run by its interpreter, in its checkout.

`python -m bench.lean_kimina_inside JOB` reads the checks from a JSON file and prints the outcomes as its last line.
Every setting comes from the server's own environment variables.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anyio
from fastapi import HTTPException
from kimina_client import Snippet
from kimina_client.models import has_sorry, is_error
from server.main import settings
from server.manager import Manager
from server.routers.check import run_checks

from bench.lean_arrivals import drive


async def run(job: dict[str, Any]) -> dict[str, Any]:
    """Start the pool with the REPLs that the settings ask for, and give it every check."""
    manager = Manager(
        max_repls=settings.max_repls,
        max_repl_uses=settings.max_repl_uses,
        max_repl_mem=settings.max_repl_mem,
        init_repls=settings.init_repls,
    )
    await manager.initialize_repls()

    async def check_one(number: int) -> str:
        snippet = Snippet(id=str(number), code=job["codes"][number])
        try:
            (result,) = await run_checks([snippet], job["timeout_s"], False, manager, True)
        except HTTPException as error:
            return f"HTTP {error.status_code}"
        if result.error:
            return "timeout" if "timed out" in result.error else result.error
        answer: Any = result.response
        return "rejected" if "message" in answer or is_error(answer) or has_sorry(answer) else "accepted"

    outcomes = await drive(job["names"], check_one, job["arrival"], job["think_s"])
    await manager.cleanup()
    await anyio.sleep(0.5)  # the processes are ended by tasks that nobody waits for
    return {"outcomes": outcomes}


if __name__ == "__main__":
    print("\n" + json.dumps(anyio.run(run, json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
