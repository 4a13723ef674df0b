"""How often the tiny model solves the test split: `python -m examples.tiny.measure [--model FOLDER]`.

A small sampler in plain torch with the project's renderer, for a quick look without vLLM. Proofs are judged by the
recipes of the families, which needs no verifier; the real run judges with one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from examples.tiny.build import MODEL
from examples.tiny.families import FAMILIES, fill
from examples.tiny.hints import worked_example
from examples.tiny.statements import Row, make_world
from fd_async.rendering import Renderer
from fd_async.types import Statement
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS

LINEAR = {"linear_nat", "linear_int", "closed", "nat_le_trans"}
Judge = Callable[[Row, str], str]
"""Maps a row and a whole file to the compiler's output; empty means proved."""


@dataclass
class Attempt:
    """One dialogue as ids, with the positions that the model sampled."""

    row: Row
    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    solved: bool = False
    malformed: int = 0
    turns: int = 0
    files: list[str] = field(default_factory=list)


def judge_by_recipe(row: Row, file: str) -> str:
    """Accept the family's recipe with the right names, and `omega` where it is linear arithmetic."""
    head, _, proof = file.partition(" := by ")
    if head + " :=" != row.formal_statement:
        return "error: the statement was changed"
    recipe = next(family.recipe for family in FAMILIES if family.name == row.family)
    if proof.strip() == fill(recipe, row.hypotheses) or (row.family in LINEAR and proof.strip() == "omega"):
        return ""
    return "1:60: error: Type mismatch"


def prompt_of(renderer: Renderer, row: Row, hint: str = "") -> list[int]:
    """Render a row for the student, or with a hint for the teacher."""
    statement = Statement(name=row.name, formal_statement=row.formal_statement)
    return renderer.teacher_prompt(statement, hint, 256) if hint else renderer.student_prompt(statement)


@torch.no_grad()
def attempt_all(
    model: Any,
    renderer: Renderer,
    rows: list[Row],
    *,
    judge: Judge = judge_by_recipe,
    hint: Callable[[Row], str] = lambda _: "",
    max_tokens: int = 224,
    max_turns: int = 4,
    temperature: float = 1.0,
) -> list[Attempt]:
    """Run all dialogues side by side, one token of each per forward pass; tool results are fed as given ids."""
    from transformers import DynamicCache

    attempts = [Attempt(row=row, prompt=prompt_of(renderer, row, hint(row))) for row in rows]
    longest = max(len(a.prompt) for a in attempts)
    padding = [longest - len(a.prompt) for a in attempts]
    ids = torch.tensor([[0] * pad + a.prompt for pad, a in zip(padding, attempts, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * len(a.prompt) for pad, a in zip(padding, attempts, strict=True)])
    queues: list[list[int]] = [[] for _ in attempts]
    turn_starts = [0] * len(attempts)
    running = [True] * len(attempts)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for _ in range(max_tokens):
        logits = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits[:, -1]
        drawn = torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0].tolist()
        for index, attempt in enumerate(attempts):
            if not running[index]:
                drawn[index] = 0
                continue
            given = bool(queues[index])
            if given:
                drawn[index] = queues[index].pop(0)
            attempt.ids.append(drawn[index])
            attempt.sampled.append(not given)
            if not given and drawn[index] in renderer.stop_token_ids:
                queues[index] = _use_tools(attempt, renderer, judge, turn_starts[index])
                turn_starts[index] = len(attempt.ids) + len(queues[index])
                running[index] = bool(queues[index]) and attempt.turns < max_turns
        if not any(running):
            break
        ids = torch.tensor(drawn)[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        positions = positions[:, -1:] + 1
    return attempts


def _use_tools(attempt: Attempt, renderer: Renderer, judge: Judge, start: int) -> list[int]:
    """Answer the turn that just ended; no ids means that the dialogue is over."""
    attempt.turns += 1
    results = []
    for call in renderer.parse_tool_calls(renderer.decode(attempt.ids[start:])):
        if call.name == "lean_write_file" and isinstance(call.arguments.get("code"), str):
            attempt.files.append(call.arguments["code"])
            results.append(f"Wrote {call.arguments.get('file_name')}.")
        elif call.name == "lean_check_file" and attempt.files:
            output = judge(attempt.row, attempt.files[-1])
            if not output:
                attempt.solved = True
                return []
            results.append(output)
        else:
            attempt.malformed += 1
            results.append(call.error or "error: unknown call")
    if not results:
        attempt.malformed += 1
        return []
    return renderer.tool_result_ids(results, closed=True)


def load_model(folder: Path) -> tuple[Any, Renderer]:
    """Load the model in float32 with its renderer."""
    from transformers import Qwen3ForCausalLM

    model: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    renderer = Renderer.load(str(folder), tools=TOOL_SCHEMAS, tool_format="qwen3", thinking=False)
    return model.eval(), renderer


def summary(attempts: list[Attempt]) -> dict[str, float]:
    """Condense attempts to rates."""
    count = len(attempts)
    return {
        "solved": round(sum(a.solved for a in attempts) / count, 3),
        "first_try": round(sum(a.solved and a.turns == 2 for a in attempts) / count, 3),
        "malformed": round(sum(a.malformed for a in attempts) / sum(a.turns for a in attempts), 4),
        "tokens": round(sum(len(a.ids) for a in attempts) / count, 1),
        "sampled": round(sum(sum(a.sampled) for a in attempts) / count, 1),
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, renderer = load_model(arguments.model)
    rows = make_world()["test"]
    hinted = attempt_all(model, renderer, rows, hint=lambda r: worked_example(r.formal_statement, r.proof[3:]))
    print(json.dumps({"no_hint": summary(attempt_all(model, renderer, rows)), "hint": summary(hinted)}))


if __name__ == "__main__":
    main()
