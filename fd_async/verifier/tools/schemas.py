"""The three tools as the model sees them (paper section 4.1); the chat template prints these."""

from __future__ import annotations

from typing import Any


def _tool(name: str, description: str, **parameters: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string", "description": text} for key, text in parameters.items()},
                "required": list(parameters),
            },
        },
    }


TOOL_SCHEMAS: list[dict[str, Any]] = [
    _tool(
        "lean_write_file",
        "Write a Lean 4 source file. It must state the theorem unchanged and prove it.",
        file_name="Flat file name ending in .lean",
        code="The whole file",
    ),
    _tool(
        "lean_check_file",
        "Compile a written file and return errors, warnings or success.",
        file_name="Name of a file written before",
    ),
    _tool(
        "rg_in_mathlib",
        "Search Mathlib with a regular expression and return matching lines.",
        pattern="Regular expression of ripgrep",
    ),
]
