"""`lean`, `leanchecker` and `comparator` without Lean: command lines, files, answers and exit codes of the real ones.

`install` writes a toolchain folder with the programs. They are honest by the words of `repl_fake` (`fake_error`,
`fake_axiom`, ...), and `fake_forged` is what only the kernel of `leanchecker` or the comparator sees. `trouble` names
a program that fails for a reason of its own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.fakes import repl_fake


def install(sysroot: Path, *, trouble: str = "") -> None:
    """Write `bin/lean`, `bin/leanchecker`, `bin/comparator`, `bin/lean4export` and `bin/landrun`."""
    (sysroot / "bin").mkdir(parents=True)
    root = Path(__file__).parents[2]
    for name in ("lean", "leanchecker", "comparator", "lean4export", "landrun"):
        program = sysroot / "bin" / name
        run = f"PYTHONPATH={root} exec {sys.executable} -S -E -c \"import sys; sys.path.insert(0, '{root}'); "
        run += 'from tests.fakes.lean_tools import main; main()"'
        program.write_text(f'#!/bin/sh\nFD_TROUBLE={trouble} {run} {name} "$@"\n')
        program.chmod(0o755)


def main() -> None:
    """Be the program that the first argument names."""
    name, arguments = sys.argv[1], sys.argv[2:]
    if os.environ.get("FD_TROUBLE") == name:
        print("uncaught exception: no space left on device", file=sys.stderr)
        sys.exit(1)
    sys.exit({"lean": lean, "leanchecker": leanchecker, "comparator": comparator}[name](arguments))


def lean(arguments: list[str]) -> int:
    """`lean --json --root=DIR -o MODULE.olean MODULE.lean`: messages as JSON lines, exit code 1 after errors."""
    assert arguments[0] == "--json"
    assert arguments[1].startswith("--root=")
    assert arguments[2] == "-o"
    text = Path(arguments[4]).read_text(encoding="utf-8")
    body, separator, probe = text.rpartition("\n\ntheorem fd_probe")
    messages = repl_fake.answer(body if separator else text, None).get("messages", [])
    if separator:
        lines = body.count("\n") + 2
        for message in repl_fake.answer(("theorem fd_probe" + probe).rstrip("\n"), 0).get("messages", []):
            message["pos"]["line"] += lines
            messages.append(message)
    for message in messages:
        severity = "information" if message["severity"] == "info" else message["severity"]
        print(json.dumps({**message, "severity": severity, "fileName": arguments[4], "kind": "[anonymous]"}))
    if "fake_hang" in text:
        import time

        time.sleep(3600)
    Path(arguments[3]).write_text(text, encoding="utf-8")
    return int(any(message["severity"] == "error" for message in messages))


def leanchecker(arguments: list[str]) -> int:
    """`leanchecker MODULE`: finds the module on LEAN_PATH and replays it."""
    (module,) = arguments
    for folder in os.environ["LEAN_PATH"].split(os.pathsep):
        file = Path(folder) / f"{module}.olean"
        if file.is_file():
            break
    else:
        print(f"uncaught exception: Could not find any oleans for: {module}", file=sys.stderr)
        return 1
    if "fake_forged" in file.read_text(encoding="utf-8"):
        print(f"leanchecker found a problem in {module}", file=sys.stderr)
        print("uncaught exception: (kernel) declaration type mismatch, 'foo' has type", file=sys.stderr)
        return 1
    return 0


def comparator(arguments: list[str]) -> int:
    """`comparator config.json` in a Lake project of its own."""
    config = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    challenge = Path(config["challenge_module"] + ".lean").read_text(encoding="utf-8")
    solution = Path(config["solution_module"] + ".lean").read_text(encoding="utf-8")
    assert config["permitted_axioms"] == ["Classical.choice", "Quot.sound", "propext"]
    assert all(os.path.isfile(os.environ[f"COMPARATOR_{name}"]) for name in ("LANDRUN", "LEAN4EXPORT"))
    assert Path("lakefile.toml").is_file()
    assert Path("lake-manifest.json").is_file()
    (name,) = config["theorem_names"]
    assert f"theorem {name}" in challenge
    assert challenge.rstrip().endswith("by sorry")
    for module in (config["challenge_module"], config["solution_module"]):
        print(f"Building {module}")
        print(f"Exporting #[{name}] from {module}")
    if "fake_forged" in solution:
        print("uncaught exception: (kernel) declaration type mismatch", file=sys.stderr)
        return 1
    print("Your solution is okay!")
    return 0
