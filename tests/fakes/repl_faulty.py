"""A REPL that misbehaves where a command asks for it, for tests of the client and for `bench.lean_faults`.

A command that contains `fake_MODE` gets what the function of that name below does; all others are answered honestly
(`repl_fake.py`). In the header the word breaks the start of a process. Words that change it:

- `fake_once_PATH_ ` before it: only while the file PATH does not exist, so the second worker is honest;
- `fake_in_probe `: not in this command, but in the probe that follows it.

Options on the command line: `starts=FILE` counts the starts of all processes, and with `every=N` each N-th ends at
once with exit code 1; anything else is a token by which a test finds what is left of the process and its children.
"""

from __future__ import annotations

import _signal as signal  # the module `signal` brings `enum` along
import os
import sys
import time

from tests.fakes import repl_fake
from tests.fakes.repl_fake import answer, block, decode, message, requests, send

TYPE_CHECKING = False  # of `typing`, which takes longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Mode = Callable[[dict[str, Any]], None]

STEP_S = 0.02
"""Pause between two parts of what must not arrive in one piece."""
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""A sandbox has to show its `tests/fakes`."""
_START = f"import sys; sys.path.insert(0, {ROOT!r}); from tests.fakes.{{}} import main; main()"
_LINES = b"dbg_trace: 42 x\n" * 4096
_memory: list[bytearray] = []

BEFORE: dict[str, Mode] = {}
"""What happens before the command has run, and is then answered honestly unless it ended the process."""
INSTEAD: dict[str, Mode] = {}
"""How the answer is sent."""


def program(*options: str, module: str = "repl_faulty") -> list[str]:
    """Return the argv of a process; imported and not read as a script, so that Python compiles it only once."""
    return [sys.executable, "-S", "-E", "-I", "-c", _START.format(module), *options]


def _listed(table: dict[str, Mode]) -> Callable[[Mode], Mode]:
    def enter(function: Mode) -> Mode:
        table[function.__name__] = function
        return function

    return enter


before, instead = _listed(BEFORE), _listed(INSTEAD)


def forever(_: object = None) -> NoReturn:
    """Hang without computing."""
    while True:
        time.sleep(3600)


# --- Fault 3: the right answer in unusual pieces -------------------------------------------------------------------


@instead
def bytes_(result: dict[str, Any]) -> None:
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
def huge(result: dict[str, Any]) -> None:
    """One line of 3 MB."""
    send(block({**result, "messages": [*result.get("messages", []), message("info", "x" * 3_000_000)]}))


@instead
def many(result: dict[str, Any]) -> None:
    """A hundred thousand messages."""
    one = repl_fake.encode(message("warning", "unused variable"))
    own = [repl_fake.encode(item) for item in result.get("messages", [])]
    send(f'{{"env": {result["env"]}, "messages": [{", ".join([*own, *[one] * 100_000])}]}}\n\n'.encode())


# --- Fault 4: late, half, unended, twice ---------------------------------------------------------------------------


@before
def slow(_: object) -> None:
    """The first byte comes after 50 ms."""
    time.sleep(0.05)


@before
def hang(_: object) -> None:
    """No byte at all."""
    forever()


@before
def spin(_: object) -> None:
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
def double(result: dict[str, Any]) -> None:
    """The answer twice at once."""
    send(2 * block(result))


@instead
def late(result: dict[str, Any]) -> None:
    """The answer, and again a moment later, when somebody else may use the process."""
    send(block(result))
    time.sleep(STEP_S)
    send(block(result))


# --- Faults 1 and 2: not the answer to this request ----------------------------------------------------------------


@instead
def stray(result: dict[str, Any]) -> None:
    """A word on stdout after the answer, before the next request."""
    send(block(result))
    time.sleep(STEP_S)
    send(b"PANIC at Lean.Expr\n")


@before
def banner(_: object) -> None:
    """A word on stdout before the answer."""
    send(b"PANIC at Lean.Expr\n\n")


@instead
def wrong_env(result: dict[str, Any]) -> None:
    """The number of the next environment."""
    send(block({**result, "env": result["env"] + 1}))


@instead
def other(result: dict[str, Any]) -> None:
    """The answer to the request before this one."""
    send(block({"env": result["env"] - 1}))


@instead
def tactic(_: object) -> None:
    """The answer to a tactic step, which nobody asked for."""
    send(block({"proofState": 0, "goals": []}))


@instead
def forged(result: dict[str, Any]) -> None:
    """What a proof writes to stdout that wants to pass, and then the true answer."""
    send(block({"env": result["env"]}) + block(result))


@instead
def forged_early(result: dict[str, Any]) -> None:
    """The same, with a pause in which the client believes it."""
    send(block({"env": result["env"]}))
    time.sleep(STEP_S)
    send(block(result))


@instead
def forged_both(result: dict[str, Any]) -> None:
    """A forged answer in place of the true one, and another one for the probe that follows."""
    send(block({"env": result["env"]}))


@instead
def forged_probe(result: dict[str, Any]) -> None:
    """The second half of `forged_both`; the name of the probe can only be guessed."""
    guessed = "'fd_probe_0000000000000000' does not depend on any axioms"
    send(block({"env": result["env"], "messages": [message("info", guessed)]}))


# --- Fault 5: the process ends -------------------------------------------------------------------------------------


@before
def exit0(_: object) -> None:
    """Exit code 0, nothing on stdout."""
    os._exit(0)


@before
def exit(_: object) -> None:
    """Exit code 1 after the words of an uncaught exception."""
    os.write(2, b'uncaught exception: {"message": "Could not parse JSON"}\n')
    os._exit(1)


@before
def abort(_: object) -> None:
    """SIGABRT, as after a panic."""
    os.abort()


@before
def die(_: object) -> None:
    """SIGKILL, as from the kernel without memory."""
    os.kill(os.getpid(), signal.SIGKILL)


@before
def segv(_: object) -> None:
    """SIGSEGV."""
    os.kill(os.getpid(), signal.SIGSEGV)


@before
def memory(_: object) -> None:
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
def close(_: object) -> None:
    """Close stdout and live on."""
    os.close(1)
    forever()


# --- Fault 6: ten megabytes on stderr ------------------------------------------------------------------------------


@before
def stderr(_: object) -> None:
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


# --- Fault 7: refusals ---------------------------------------------------------------------------------------------


@instead
def refuse(_: object) -> None:
    """`message` and nothing else."""
    send(block({"message": "Unknown environment."}))


@instead
def no_env(result: dict[str, Any]) -> None:
    """An answer without an environment."""
    send(block({"messages": result.get("messages", [])}))


# --- Fault 8: hard to kill -----------------------------------------------------------------------------------------


@before
def stubborn(_: object) -> None:
    """Ignore every signal that can be ignored, and hang."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    forever()


@before
def child(_: object) -> None:
    """Leave a child that holds the pipes, and answer."""
    if not os.fork():
        forever()


@before
def child_own_group(_: object) -> None:
    """The same, in a process group of its own."""
    if not os.fork():
        os.setpgid(0, 0)
        forever()


@before
def grandchild(_: object) -> None:
    """Leave a child that holds the pipes, and die: the end of the output never comes."""
    child(None)
    os.kill(os.getpid(), signal.SIGKILL)


@before
def grandchild_session(_: object) -> None:
    """The same, in a session of its own, where no signal to the group arrives."""
    ready, told = os.pipe()
    if not os.fork():
        os.setsid()
        os.write(told, b".")
        forever()
    os.read(ready, 1)
    os.kill(os.getpid(), signal.SIGKILL)


# --- Fault 9: slow to read; meant for the header -------------------------------------------------------------------


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


# --- Fault 10: memory and slow starts ------------------------------------------------------------------------------


@before
def grow(_: object) -> None:
    """Take 64 MiB and keep them."""
    _memory.append(bytearray(b"x" * (1 << 26)))


@before
def swell(_: object) -> None:
    """Take memory until there is no more."""
    try:
        while True:
            grow(None)
            time.sleep(0.001)
    except MemoryError:
        _memory.clear()
        os.write(2, b"INTERNAL PANIC: out of memory\n")
        os._exit(1)


@before
def import_slowly(_: object) -> None:
    """Take 0.3 s, in a header."""
    time.sleep(0.3)


# --- Answers that are no answers -----------------------------------------------------------------------------------


@instead
def garbage(_: object) -> None:
    """Not JSON at all."""
    send(b"PANIC at Lean.Expr\n\n")


@instead
def invalid_json(result: dict[str, Any]) -> None:
    """A comma too many."""
    send(block(result).rstrip().removesuffix(b"}") + b",}\n\n")


@instead
def invalid_utf8(result: dict[str, Any]) -> None:
    """Bytes that are no text."""
    send(block({**result, "messages": [message("info", "here")]}).replace(b"here", b"\xff\xfe\xc3"))


@instead
def deep(result: dict[str, Any]) -> None:
    """A hundred thousand open brackets."""
    send(block(result).rstrip().removesuffix(b"}") + b', "tree": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n\n")


@instead
def nan(result: dict[str, Any]) -> None:
    """A number that is none."""
    send(block(result).rstrip().removesuffix(b"}") + b', "messages": [{"pos": {"line": NaN, "column": 0}}]}\n\n')


@instead
def huge_number(_: object) -> None:
    """An environment with five thousand digits."""
    send(b'{"env": ' + b"9" * 5000 + b"}\n\n")


@instead
def endless(_: object) -> None:
    """An answer that does not end; the client has to stop it."""
    while True:
        send(b" " * 65536)


# --- The process ---------------------------------------------------------------------------------------------------


def mode_of(cmd: str, parent: str) -> str:
    """Name what this command asks for; the probe is governed by the body before it."""
    text = cmd
    if repl_fake.probed(cmd) is not None and "fake_forged_both" in parent:
        return "forged_probe"
    if repl_fake.probed(cmd) is not None:
        text = parent if "fake_in_probe " in parent else ""
    elif "fake_in_probe " in cmd:
        return ""
    names = (word.removeprefix("fake_") for _, word in repl_fake.words(text, "fake_"))
    found = next((name for name in names if name == "bytes" or name in BEFORE or name in INSTEAD), "")
    if found and "fake_once_" in text:
        path = text.partition("fake_once_")[2].partition("_ ")[0]
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return ""
    return "bytes_" if found == "bytes" else found


def count_start(options: dict[str, str]) -> None:
    """Count this start, and end it when its turn has come."""
    if "starts" not in options:
        return
    file = os.open(options["starts"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b".")
    number = os.fstat(file).st_size
    os.close(file)
    if number % int(options.get("every", "0") or number + 1) == 0:
        os.write(2, b"uncaught exception: no such file or directory: Mathlib.olean\n")
        os._exit(1)


def main() -> None:
    """Serve requests until the end of input."""
    count_start(dict(option.split("=", 1) for option in sys.argv[1:] if "=" in option))
    commands: list[str] = []
    for text in requests():
        try:
            request = decode(text)
        except ValueError:
            exit(None)
        cmd, env = request["cmd"], request.get("env")
        name = mode_of(cmd, commands[env] if env is not None and env < len(commands) else "")
        if name in BEFORE:
            BEFORE[name](None)
        result = answer(cmd, env)
        if "env" in result:
            commands.append(cmd)
        INSTEAD.get(name, lambda result: send(block(result)))(result)


if __name__ == "__main__":
    main()
