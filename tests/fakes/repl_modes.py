"""The ways to misbehave of `repl_faulty.py`, by name: what happens before the answer, or how the answer is sent."""

from __future__ import annotations

import os
import time

from tests.fakes import repl_fake
from tests.fakes.repl_fake import block, message, send

TYPE_CHECKING = False  # of `typing`, which takes longer to import than all the rest
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any, NoReturn

    Before = Callable[[], None]
    Instead = Callable[[dict[str, Any]], None]
else:
    import _signal as signal  # the module `signal` brings `enum` along

STEP_S = 0.02
"""Pause between two parts of what must not arrive in one piece."""
BEFORE: dict[str, Before] = {}
"""What happens before the command has run, and is then answered honestly unless it ended the process."""
INSTEAD: dict[str, Instead] = {}
"""How the answer is sent."""
_LINES = b"dbg_trace: 42 x\n" * 4096
_memory: list[bytearray] = []


def reply(mode: str, result: dict[str, Any]) -> None:
    """Send the answer, in the way that the mode says."""
    if mode in INSTEAD:
        INSTEAD[mode](result)
    else:
        send(WRITTEN.get(mode, block)(result))


def is_mode(name: str) -> bool:
    """Tell whether there is a way to misbehave of this name."""
    return name in BEFORE or name in INSTEAD or name in WRITTEN


def before(function: Before) -> Before:
    """Enter it into its table."""
    BEFORE[function.__name__] = function
    return function


def instead(function: Instead) -> Instead:
    """Enter it into its table."""
    INSTEAD[function.__name__] = function
    return function


def forever() -> NoReturn:
    """Hang without computing."""
    while True:
        time.sleep(3600)


def _env(result: dict[str, Any], change: int = 0) -> bytes:
    return block({"env": result["env"] + change})


def _says(result: dict[str, Any], text: str) -> bytes:
    return block({**result, "messages": [*result.get("messages", []), message("info", text)]})


def _with(result: dict[str, Any], more: bytes) -> bytes:
    """Append raw bytes to the object's entries."""
    return block(result).rstrip().removesuffix(b"}") + more + b"}\n\n"


WRITTEN: dict[str, Callable[[dict[str, Any]], bytes]] = {
    # Fault 1: the answer to something else
    "wrong_env": lambda result: block({**result, "env": result["env"] + 1}),
    "other": lambda result: _env(result, -1),
    "tactic": lambda _: block({"proofState": 0, "goals": []}),
    # Fault 1: no answer at all
    "garbage": lambda _: b"PANIC at Lean.Expr\n\n",
    "invalid_json": lambda result: _with(result, b","),
    "invalid_utf8": lambda result: _says(result, "here").replace(b"here", b"\xff\xfe\xc3"),
    "deep": lambda result: _with(result, b', "tree": ' + b"[" * 100_000 + b"]" * 100_000),
    "nan": lambda result: _with(result, b', "messages": [{"pos": {"line": NaN, "column": 0}}]'),
    "huge_number": lambda _: b'{"env": ' + b"9" * 5000 + b"}\n\n",
    # Fault 3: one line of 3 MB
    "huge": lambda result: _says(result, "x" * 3_000_000),
    # Fault 4: two answers at once; what a proof writes to stdout that wants to pass, and then the true answer
    "double": lambda result: 2 * block(result),
    "forged": lambda result: _env(result) + block(result),
    # In place of the true answer, and again for the probe that follows, whose name can only be guessed
    "forged_both": _env,
    "forged_probe": lambda result: _says(
        {"env": result["env"]}, "'fd_probe_0000000000000000' does not depend on any axioms"
    ),
    # Fault 7: refusals
    "refuse": lambda _: block({"message": "Unknown environment."}),
    "no_env": lambda result: block({"messages": result.get("messages", [])}),
}
"""What is written in place of the answer, at once and without an end of the process."""


# Fault 3: the right answer in unusual pieces


@instead
def bytewise(result: dict[str, Any]) -> None:
    """Each byte by itself, so that every border is met, inside UTF-8 code points too; lines end with CRLF."""
    for piece in block(result).replace(b"\n", b"\r\n"):
        os.write(1, bytes([piece]))


@instead
def split(result: dict[str, Any]) -> None:
    """In pieces of one to seven bytes with pauses."""
    data = block(result)
    for number, start in enumerate(range(0, len(data), 7)):
        os.write(1, data[start : start + 1 + number % 7])
        time.sleep(0.0005)
        send(data[start + 1 + number % 7 : start + 7])


@instead
def many(result: dict[str, Any]) -> None:
    """A hundred thousand messages."""
    one = repl_fake.encode(message("warning", "unused variable"))
    own = [repl_fake.encode(item) for item in result.get("messages", [])]
    send(f'{{"env": {result["env"]}, "messages": [{", ".join([*own, *[one] * 100_000])}]}}\n\n'.encode())


# Fault 4: late, half, unended, twice


@before
def slow() -> None:
    """The first byte comes after 50 ms."""
    time.sleep(0.05)


@before
def hang() -> None:
    """No byte at all."""
    forever()


@before
def spin() -> None:
    """No byte at all, and a busy core."""
    while True:
        pass


@instead
def half(result: dict[str, Any]) -> None:
    """Half of the answer, then silence."""
    data = block(result)
    send(data[: len(data) // 2])
    forever()


@instead
def half_then_exit(result: dict[str, Any]) -> None:
    """Half of the answer, then the end."""
    data = block(result)
    send(data[: len(data) // 2])
    os._exit(0)


@instead
def unended(result: dict[str, Any]) -> None:
    """The whole answer without the blank line, then silence."""
    send(block(result).rstrip())
    forever()


@instead
def unended_exit(result: dict[str, Any]) -> None:
    """The whole answer without the blank line, then the end."""
    send(block(result).rstrip())
    os._exit(0)


@instead
def late(result: dict[str, Any]) -> None:
    """The answer, and again a moment later, when somebody else may use the process."""
    send(block(result))
    time.sleep(STEP_S)
    send(block(result))


# Faults 1 and 2: not the answer to this request


@instead
def stray(result: dict[str, Any]) -> None:
    """A word on stdout after the answer, before the next request."""
    send(block(result))
    time.sleep(STEP_S)
    send(b"PANIC at Lean.Expr\n")


@before
def banner() -> None:
    """A word on stdout before the answer."""
    send(b"PANIC at Lean.Expr\n\n")


@instead
def forged_early(result: dict[str, Any]) -> None:
    """The same, with a pause in which the client believes it."""
    send(block({"env": result["env"]}))
    time.sleep(STEP_S)
    send(block(result))


# Fault 5: the process ends


@before
def exit0() -> None:
    """Exit code 0, nothing on stdout."""
    os._exit(0)


@before
def exit() -> NoReturn:
    """Exit code 1 after the words of an uncaught exception."""
    os.write(2, b'uncaught exception: {"message": "Could not parse JSON"}\n')
    os._exit(1)


@before
def abort() -> None:
    """SIGABRT, as after a panic."""
    os.abort()


@before
def die() -> None:
    """SIGKILL, as from the kernel without memory."""
    os.kill(os.getpid(), signal.SIGKILL)


@before
def segv() -> None:
    """SIGSEGV."""
    os.kill(os.getpid(), signal.SIGSEGV)


@before
def memory() -> None:
    """What Lean says and does when an allocation fails."""
    os.write(2, b"INTERNAL PANIC: out of memory\n")
    os._exit(1)


@instead
def leave(result: dict[str, Any]) -> None:
    """Answer, and end while idle."""
    send(block(result))
    time.sleep(STEP_S)
    os._exit(0)


@before
def close() -> None:
    """Close stdout and live on."""
    os.close(1)
    forever()


# Fault 6: ten megabytes on stderr


@before
def stderr() -> None:
    """Before the answer."""
    _flood()


@instead
def stderr_during(result: dict[str, Any]) -> None:
    """In the middle of the answer."""
    data = block(result)
    send(data[: len(data) // 2])
    _flood()
    send(data[len(data) // 2 :])


@instead
def stderr_after(result: dict[str, Any]) -> None:
    """After the answer, while nobody may be there to read it."""
    send(block(result))
    _flood()


def _flood() -> None:
    for _ in range(160):
        os.write(2, _LINES)


# Fault 8: hard to kill


@before
def stubborn() -> None:
    """Ignore every signal that can be ignored, and hang."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    forever()


@before
def child() -> None:
    """Leave a child that holds the pipes, and answer."""
    if not os.fork():
        forever()


@before
def child_own_group() -> None:
    """The same, in a process group of its own."""
    if not os.fork():
        os.setpgid(0, 0)
        forever()


@before
def grandchild() -> None:
    """Leave a child that holds the pipes, and die: the end of the output never comes."""
    child()
    os.kill(os.getpid(), signal.SIGKILL)


@before
def grandchild_session() -> None:
    """The same, in a session of its own, where no signal to the group arrives."""
    ready, told = os.pipe()
    if not os.fork():
        os.setsid()
        os.write(told, b".")
        forever()
    os.read(ready, 1)
    os.kill(os.getpid(), signal.SIGKILL)


# Fault 9: slow to read; meant for the header


@instead
def deaf(result: dict[str, Any]) -> None:
    """Never read again: a request larger than the pipe cannot be written."""
    send(block(result))
    forever()


@instead
def slow_reader(result: dict[str, Any]) -> None:
    """Read nothing for a moment, then all."""
    send(block(result))
    time.sleep(5 * STEP_S)


# Fault 10: memory and slow starts


@before
def grow() -> None:
    """Take 64 MiB and keep them."""
    _memory.append(bytearray(b"x" * (1 << 26)))


@before
def swell() -> None:
    """Take memory until there is no more."""
    try:
        while True:
            grow()
            time.sleep(0.001)
    except MemoryError:
        _memory.clear()
        os.write(2, b"INTERNAL PANIC: out of memory\n")
        os._exit(1)


@before
def import_slowly() -> None:
    """Take 0.3 s, in a header."""
    time.sleep(0.3)


@instead
def endless(_: object) -> None:
    """An answer that does not end; the client has to stop it."""
    while True:
        send(b" " * 65536)
