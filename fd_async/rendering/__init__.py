"""Chat template to token ids for student and teacher, and the tool-call formats of the Qwen family.

Invariants: the teacher's prompt is the student's with a feedback block at the end of the user message and nothing
else; sampled ids are never encoded again; untrusted text never becomes a control token.
"""

from __future__ import annotations

from fd_async.rendering.lean_blocks import lean_blocks
from fd_async.rendering.renderer import FEEDBACK_INTRO, INSTRUCTION, INSTRUCTION_WITHOUT_TOOLS, Renderer, ToolFormat

__all__ = ["FEEDBACK_INTRO", "INSTRUCTION", "INSTRUCTION_WITHOUT_TOOLS", "Renderer", "ToolFormat", "lean_blocks"]
