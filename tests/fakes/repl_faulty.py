"""A REPL that misbehaves where a command asks for it, for tests of the client and for `bench.lean_faults`.

A command that contains `fake_MODE` gets what that function of `repl_modes.py` does; all others are answered honestly
(`repl_fake.py`). In the header the word breaks the start of a process. Words that change it:

- `fake_once_PATH_ ` before it: only while the file PATH does not exist, so the second worker is honest;
- `fake_in_probe `: not in this command, but in the probe that follows it.

Options on the command line: `starts=FILE` counts the starts of all processes, and with `every=N` each N-th ends at
once with exit code 1; anything else is a token by which a test finds what is left of the process and its children.
"""

from __future__ import annotations

import os
import sys

from tests.fakes import repl_fake
from tests.fakes.repl_fake import answer, decode, requests
from tests.fakes.repl_modes import BEFORE, exit, is_mode, reply

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""A sandbox has to show its `tests/fakes`."""
_START = f"import sys; sys.path.insert(0, {ROOT!r}); from tests.fakes.{{}} import main; main()"


def program(*options: str, module: str = "repl_faulty") -> list[str]:
    """Return the argv of a process; imported and not read as a script, so that Python compiles it only once."""
    return [sys.executable, "-S", "-E", "-I", "-c", _START.format(module), *options]


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
    found = next((name for name in names if is_mode(name)), "")
    if found and "fake_once_" in text:
        path = text.partition("fake_once_")[2].partition("_ ")[0]
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return ""
    return found


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
            exit()
            raise
        cmd, env = request["cmd"], request.get("env")
        name = mode_of(cmd, commands[env] if env is not None and env < len(commands) else "")
        if name in BEFORE:
            BEFORE[name]()
        result = answer(cmd, env)
        if "env" in result:
            commands.append(cmd)
        reply(name, result)


if __name__ == "__main__":
    main()
