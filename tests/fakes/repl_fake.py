"""A REPL subprocess without Lean: honest by default, misbehaves where the command contains a marker word.

`fake_error`, `fake_sorry`, `fake_axiom`, `fake_changed` give those answers; `fake_slow`, `fake_hang`, `fake_spin`,
`fake_die`, `fake_abort`, `fake_memory`, `fake_exit`, `fake_half`, `fake_double`, `fake_wrong_env`, `fake_garbage`,
`fake_stderr`, `fake_huge`, `fake_grandchild`, `fake_late`, `fake_refuse` break the protocol in that way.
`fake_once_PATH_` before a marker makes it happen only while the file PATH does not exist.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from typing import Any

ENVIRONMENTS: list[str] = []


def send(answer: dict[str, Any]) -> None:
    """Write one block as the REPL does."""
    sys.stdout.write(json.dumps(answer, indent=1, ensure_ascii=False) + "\n\n")
    sys.stdout.flush()


def message(severity: str, data: str, line: int = 1, column: int = 0) -> dict[str, Any]:
    """One diagnostic."""
    return {"severity": severity, "pos": {"line": line, "column": column}, "endPos": None, "data": data}


def answer(cmd: str, env: int | None) -> dict[str, Any]:
    """Answer a command honestly."""
    if env is not None and env >= len(ENVIRONMENTS):
        return {"message": "Unknown environment."}
    text = (ENVIRONMENTS[env] if env is not None else "") + "\n" + cmd
    ENVIRONMENTS.append(text)
    result: dict[str, Any] = {"env": len(ENVIRONMENTS) - 1}
    messages = []
    for number, line in enumerate(cmd.split("\n"), 1):
        found = re.finditer(r"fake_error\w*|import Nowhere|(?<=theorem )fd_canary_false", line)
        messages += [message("error", f"unknown identifier '{match[0]}'", number, match.start()) for match in found]
    probe = re.search(r"theorem (fd_probe_\w+)[^\n]*@(?:_root_\.)?(\S+)\n#print axioms \1", cmd)
    if probe:
        if f"theorem {probe[2]}" not in text or re.search(
            "fake_changed|fd_canary_probe", text.split("theorem fd_probe")[0]
        ):
            messages.append(message("error", "type mismatch"))
        axioms = [name for name, word in (("cheat", "fake_axiom"), ("sorryAx", "fake_hidden_sorry")) if word in text]
        axioms += ["sorryAx"] if "fd_canary_hidden" in text else []
        listed = f"depends on axioms: [propext,\n {', '.join(axioms)}]" if axioms else "does not depend on any axioms"
        messages.append(message("info", f"'{probe[1]}' {listed}"))
    if messages:
        result["messages"] = messages
    if re.search(r"\b(sorry|fake_sorry)\b", cmd):
        result["sorries"] = [{"proofState": 0, "pos": {"line": 1, "column": 0}, "goal": "⊢ p", "endPos": None}]
    return result


def serve(cmd: str, env: int | None) -> None:
    """Answer, or break the protocol in the way that a marker asks for."""
    once = re.search(r"fake_once_(\S+?)_ ", cmd)
    if once and os.path.exists(once[1]):
        send(answer(cmd, env))
        return
    if once:
        with open(once[1], "w"):
            pass
    if any(marker in cmd for marker in ("fake_refuse", "fake_garbage")):
        sys.stdout.write('{"message": "Unknown environment."}\n\n' if "fake_refuse" in cmd else "PANIC at Expr\n\n")
        sys.stdout.flush()
        return
    suffer(cmd)
    reply(cmd, answer(cmd, env))


def suffer(cmd: str) -> None:
    """Die, hang, or flood before any answer."""
    if "fake_die" in cmd:
        os.kill(os.getpid(), 9)
    if "fake_abort" in cmd:
        os.abort()
    if "fake_memory" in cmd:
        sys.stderr.write("out of memory\n")
        sys.stderr.flush()
        os.abort()
    if "fake_exit" in cmd:
        sys.stderr.write('uncaught exception: {"message": "Could not parse JSON"}\n')
        sys.exit(1)
    if "fake_hang" in cmd:
        time.sleep(3600)
    if "fake_spin" in cmd:
        while True:
            pass
    if "fake_slow" in cmd:
        time.sleep(0.05)
    if "fake_stderr" in cmd:
        sys.stderr.write("dbg " * 500_000)
        sys.stderr.flush()
    if "fake_grandchild" in cmd:
        subprocess.Popen(["sleep", "3600"], start_new_session="fake_grandchild_session" in cmd)
        os.kill(os.getpid(), 9)


def reply(cmd: str, result: dict[str, Any]) -> None:
    """Write the answer, whole or not."""
    text = json.dumps(result) + "\n\n"
    if "fake_half" in cmd:
        sys.stdout.write(text[: len(text) // 2])
        sys.stdout.flush()
        time.sleep(3600)
    elif "fake_double" in cmd:
        sys.stdout.write(text + text)
        sys.stdout.flush()
    elif "fake_late" in cmd:
        send(result)
        time.sleep(0.02)
        send(result)
    elif "fake_wrong_env" in cmd:
        send({**result, "env": result["env"] + 1})
    elif "fake_huge" in cmd:
        send({**result, "messages": [message("info", "x" * 3_000_000)]})
    elif "fake_bytes" in cmd:
        for piece in text.replace("\n", "\r\n").encode():
            os.write(1, bytes([piece]))
    else:
        send(result)


def main() -> None:
    """Read requests until the end of input."""
    lines: list[str] = []
    for line in sys.stdin:
        if line.strip():
            lines.append(line.rstrip())
            continue
        try:
            request = json.loads("".join(lines))
        except ValueError:
            sys.stderr.write('uncaught exception: {"message": "Could not parse JSON"}\n')
            sys.exit(1)
        lines = []
        serve(request["cmd"], request.get("env"))


if __name__ == "__main__":
    main()
