"""What the tutor is told: the four system prompts of the paper, and the message about one attempt.

Invariants:
- The system prompts are the paper's, appendix C.3, word for word; (4) is the one of appendix A.3.
- The message holds the formal statement, the attempt with its tool output, and the final compiler output. It never
  holds the known proof, which the tutor would hand on.
- Lean text is joined, never formatted: braces and backslashes in it mean nothing here.
"""

from __future__ import annotations

from typing import Final

from fd_async.types import Rollout, Statement, Turn, Verdict

_TUTOR = (
    "You are an expert feedback tutor. Given a problem and a student’s attempt, write concise, actionable pieces of "
)

_MINIMAL = _TUTOR + "advice based on what the student did."

_FORMATTED = _MINIMAL + (
    " Write between 1 and 3 numbered feedbacks about errors, things that were useful, or things that were not. They "
    "must not be too long — between 10 and 50 words each. Do not output anything else than the feedbacks, no "
    'introduction, directly the "1." of the first advice.'
)

_SELF_CONTAINED = _FORMATTED + (
    " The feedback must be self-contained and useful to someone who does not have access to the student’s answer. "
    'Don’t use "you", "your", or the second person in general — it must be useful to someone who doesn’t know there is '
    'a student. It must be framed as orders, like "Do x" or "Don’t do x", without mentioning the student. The goal is '
    "not to comment on the performance of the student, but to provide useful guidance for someone who might want to "
    "try the same problem in the future."
)

_TOOLS_AND_LENGTH = _TUTOR + (
    "advice that will provide general feedback from the student’s experience. Write between 1 and 3 numbered pieces of "
    "feedback about errors, things that were useful, or things that were not. The feedback must be self-contained and "
    "useful to someone who does not have access to the student’s answer. It must be framed as orders, like “Do X” or "
    "“Don’t do X”, without mentioning the student. Each piece of feedback must be between 10 and 50 words. The goal is "
    "not to comment on the performance of the student, but to provide useful feedback for someone who might want to "
    "try the same problem in the future. Do not use “you”, “your”, or the second person in general. It must be useful "
    "to someone who does not know there is a student. It must encourage the usage of tools. Do not output anything "
    "other than the feedback — no introduction, directly the 1. of the first piece of advice. If the answer seems "
    "truncated at the end, it may be because the student reached the token limit; in this case, order to be more "
    "concise."
)

TUTOR_PROMPTS: Final[dict[int, str]] = {1: _MINIMAL, 2: _FORMATTED, 3: _SELF_CONTAINED, 4: _TOOLS_AND_LENGTH}
"""System prompts (1) to (4), by `feedback.prompt`."""

_ENDINGS = {
    "token_budget": "The attempt ended here because the token limit was reached.",
    "turn_budget": "The attempt ended here because the limit of turns was reached.",
    "stopped": "The student ended the attempt here.",
}

_SILENT_VERDICTS = {
    "proved": "The file compiles and proves the statement.",
    "missing": "No Lean file was written.",
    "timeout": "The check ran out of time.",
    "out_of_memory": "The check ran out of memory.",
}


def user_message(rollout: Rollout, max_attempt_chars: int) -> str:
    """Describe one attempt to the tutor.

    Args:
        rollout: the finished attempt; its known proof is left out.
        max_attempt_chars: longest transcript, characters; longer ones lose their middle.
    """
    parts = [
        _section("formal_statement", _statement(rollout.statement)),
        _section("attempt", cut_middle(_transcript(rollout), max_attempt_chars)),
        _section("final_lean_output", compiler_output(rollout.verdict)),
    ]
    return "\n\n".join(parts)


def compiler_output(verdict: Verdict) -> str:
    """Return the final compiler output, or a sentence that says what happened where Lean said nothing."""
    lines = [verdict.output.strip()]
    if not lines[0]:
        lines = [verdict.reason.strip() or _SILENT_VERDICTS.get(verdict.kind, f"The verdict is `{verdict.kind}`.")]
    elif verdict.kind not in ("proved", "failed") and verdict.reason and verdict.reason not in lines[0]:
        lines.append(verdict.reason.strip())  # why a file that compiles is refused: sorry, an axiom, another statement
    return "\n".join(lines)


def cut_middle(text: str, max_chars: int) -> str:
    """Keep the beginning and the end of a long text, and say how much is gone."""
    if len(text) <= max_chars:
        return text
    head = max_chars // 2
    tail = max_chars - head
    return f"{text[:head]}\n[... {len(text) - max_chars} characters left out ...]\n{text[-tail:]}"


def _statement(statement: Statement) -> str:
    return "\n".join(part.strip() for part in (statement.header, statement.formal_statement) if part.strip())


def _transcript(rollout: Rollout) -> str:
    ending = _ENDINGS.get(rollout.end_reason)
    return "\n\n".join([_turn(turn) for turn in rollout.turns] + ([f"[{ending}]"] if ending else []))


def _turn(turn: Turn) -> str:
    if turn.role == "assistant":
        return f"[student]\n{turn.text.strip()}"
    outcome = "" if turn.ok else ", failed"
    return f"[output of {turn.tool or 'tool'}{outcome}]\n{turn.text.strip()}"


def _section(tag: str, text: str) -> str:
    return f"<{tag}>\n{text}\n</{tag}>"
