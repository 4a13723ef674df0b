"""What every vLLM process of an engine does first.

vLLM builds the handlers of its logging configuration early in each of its processes; `open_handler` is named there.
In a child it gives the process its own session, so that Ctrl-C on the terminal reaches only the controller; sends
stray output to the log file, so that it never tears the live view; and ends the process when the controller is gone,
so that `kill -9` leaves nothing behind. It also lets text models of multimodal families load without torchvision.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import select
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType

_FORMAT = "%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"
_adopted = False


def logging_config(log_file: Path | None, owner_pid: int) -> str:
    """Return vLLM's logging configuration as JSON (`VLLM_LOGGING_CONFIG_PATH` names the file that holds it).

    Without a file everything goes to standard error, and the children stay in the terminal's session.
    """
    handler = {"()": f"{__name__}.open_handler", "path": str(log_file or ""), "owner_pid": owner_pid}
    return json.dumps(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"file": handler},
            "loggers": {"vllm": {"handlers": ["file"], "level": "INFO", "propagate": False}},
        }
    )


def open_handler(path: str, owner_pid: int) -> logging.Handler:
    """Open the log file; in a child process of `owner_pid`, adopt the rules of the module docstring as well."""
    global _adopted
    if os.getpid() != owner_pid and not _adopted:
        _adopted = True
        if path:
            _leave_terminal(path)
        _end_with_owner(owner_pid)
        do_without_torchvision()
    handler = logging.FileHandler(path) if path else logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    return handler


def do_without_torchvision() -> None:
    """Let the one import succeed that needs torchvision where there is none, as on the CPU.

    vLLM's classes of Qwen3.5 take a helper of image sizes from a module of transformers that imports torchvision
    without asking whether it is there, also for a text-only policy. Everything else does ask, and is told the truth:
    the package itself stays absent, and what would touch an image fails by name.
    """
    if importlib.util.find_spec("torchvision") is not None:
        return
    transforms = ModuleType("torchvision.transforms.v2")
    transforms.functional = _Absent("torchvision.transforms.v2.functional")  # type: ignore[attr-defined]
    sys.modules[transforms.__name__] = transforms
    # Its advice to install the package would stand in the middle of the live view.
    logging.getLogger("transformers.utils.import_utils").addFilter(lambda record: "torchvision" not in str(record.msg))


def _leave_terminal(path: str) -> None:
    if os.getpid() != os.getpgrp():
        os.setsid()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _end_with_owner(owner_pid: int) -> None:
    try:
        owner = os.pidfd_open(owner_pid)
    except ProcessLookupError:
        os._exit(1)
    threading.Thread(target=_kill_after, args=(owner,), daemon=True, name="end-with-controller").start()


class _Absent(ModuleType):
    """A module of a package that is not installed."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{self.__name__}.{name}: torchvision is not installed; text models do without it")


def _kill_after(owner: int) -> None:
    """Wait until the controller's process is gone, then kill this one."""
    poll = select.poll()
    poll.register(owner, select.POLLIN)
    while not poll.poll():
        pass
    os.kill(os.getpid(), signal.SIGKILL)
