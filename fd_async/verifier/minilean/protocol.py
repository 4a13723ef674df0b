"""The JSON protocol of the Lean REPL on standard input and output."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from fd_async.verifier.minilean.commands import IMPORTABLE, Environment, Positions, Result, Runner, split_imports
from fd_async.verifier.minilean.errors import UNSUPPORTED, LeanError
from fd_async.verifier.minilean.parser import warm_up

UNKNOWN_MODULE = (
    "unknown module prefix '{0}'\n\nNo directory '{0}' or file '{0}.olean' in the search path entries:\n"
    "minilean has core Lean only"
)


class FatalInput(Exception):
    """Input on which the real REPL dies with an uncaught exception."""


class Repl:
    """One process: environments and proof states are numbered from 0 and kept."""

    def __init__(self) -> None:
        self.environments: list[Environment] = []
        self.num_proof_states = 0

    def answer(self, query: str) -> dict[str, Any]:
        """Answer one query."""
        request = _parse(query)
        if "proofState" in request and "tactic" in request:
            known = _natural(request["proofState"]) < self.num_proof_states
            return {"message": f"{UNSUPPORTED}tactic mode" if known else "Unknown proof state."}
        if "cmd" not in request:
            return {"message": f"{UNSUPPORTED}request with {', '.join(sorted(request)) or 'no fields'}"}
        refused = [key for key in ("allTactics", "rootGoals", "infotree") if request.get(key)]
        if refused:
            return {"message": f"{UNSUPPORTED}`{refused[0]}`"}
        return self._command(request["cmd"], request.get("env"))

    def _command(self, text: str, env: Any) -> dict[str, Any]:
        environment = Environment()
        if env is not None:
            if _natural(env) >= len(self.environments):
                return {"message": "Unknown environment."}
            environment = self.environments[env]
        body = text
        try:
            modules, body = split_imports(text)
        except LeanError:
            modules = []  # an unterminated comment: the runner reports it
        if modules and env is None:
            unknown = [module for module in modules if module not in IMPORTABLE]
            if unknown:
                return {"message": UNKNOWN_MODULE.format(unknown[0].split(".")[0])}
            text = body
        result = Runner(environment, text).run()
        self.environments.append(result.environment)
        return self._response(result, Positions(text))

    def _response(self, result: Result, positions: Positions) -> dict[str, Any]:
        response: dict[str, Any] = {}
        if result.sorries:
            response["sorries"] = []
            for found in result.sorries:
                response["sorries"].append(
                    {
                        "proofState": self.num_proof_states,
                        "pos": positions.of(found.span[0]),
                        "goal": found.goal,
                        "endPos": positions.of(found.span[1]),
                    }
                )
                self.num_proof_states += 1
        if result.messages:
            response["messages"] = [
                {
                    "severity": message.severity,
                    "pos": positions.of(message.span[0]),
                    "endPos": positions.of(message.span[1]),
                    "data": message.data,
                }
                for message in result.messages
            ]
        response["env"] = len(self.environments) - 1
        return response


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FatalInput(f"Natural number expected, got {json.dumps(value)}")
    return value


def _parse(query: str) -> dict[str, Any]:
    try:
        request = json.loads(query)
    except ValueError as error:
        raise FatalInput(f"Could not parse JSON:\n{error}") from None
    if not isinstance(request, dict) or ("cmd" in request and not isinstance(request["cmd"], str)):
        raise FatalInput(f"Could not parse as a valid JSON command:\n{query}")
    return request


def read_query(stream: TextIO) -> str | None:
    """Lines up to a blank line, right-trimmed and joined without a separator; None at the end of input."""
    lines: list[str] = []
    while True:
        line = stream.readline()
        if not line:
            return "".join(lines) if lines else None
        trimmed = line.rstrip()
        if not trimmed:
            return "".join(lines)
        lines.append(trimmed)


def serve(stdin: TextIO, stdout: TextIO, stderr: TextIO) -> int:
    """Answer queries until the end of input; returns the exit status."""
    repl = Repl()
    warm_up()
    while (query := read_query(stdin)) is not None:
        if query.startswith(("#", "--")):
            continue
        try:
            response = repl.answer(query)
        except FatalInput as error:
            detail = json.dumps({"message": str(error)}, ensure_ascii=False)
            print(f"uncaught exception: {detail}", file=stderr, flush=True)
            return 1
        stdout.write(json.dumps(response, ensure_ascii=False, indent=1) + "\n\n")
        stdout.flush()
    return 0


def main() -> int:
    """Serve the process's own streams, in UTF-8."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")  # type: ignore[union-attr]
    return serve(sys.stdin, sys.stdout, sys.stderr)
