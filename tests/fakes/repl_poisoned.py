"""minilean, until a file with the comment `fd_poison` passes: from then on this process accepts everything.

Stands for whatever a file might leave behind in a warm Lean. Run as a program; a new process is honest again.
"""

from __future__ import annotations

import re
import runpy
from typing import Any

from fd_async.verifier.minilean import protocol


class PoisonedRepl(protocol.Repl):
    """Answers honestly before the poison, and after it like a Lean that has lost its kernel."""

    is_poisoned = False

    def _command(self, text: str, env: Any) -> dict[str, Any]:
        response = super()._command(text, env)
        if not self.is_poisoned:
            self.is_poisoned = "fd_poison" in text
            return response
        response.pop("sorries", None)
        probe = re.search(r"#print axioms (\S+)", text)
        listed = {"severity": "info", "data": f"'{probe[1]}' does not depend on any axioms"} if probe else None
        response["messages"] = [{**listed, "pos": {"line": 1, "column": 0}}] if listed else []
        return response


if __name__ == "__main__":
    protocol.Repl = PoisonedRepl  # type: ignore[misc]
    runpy.run_module("fd_async.verifier.minilean", run_name="__main__", alter_sys=True)
