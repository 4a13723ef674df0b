"""Every line that fd_async raises says what to do, or docs/troubleshooting.md does.

A message passes in one of three ways:

    * the page quotes it: a heading or the first cell of a table row, `…` for what differs;
    * it carries its cure: behind a mark, `or` or `and` stands an order (`raise it`, `name another folder`);
    * tests/data/internal_errors.txt has it: a bug, or a notice that the code itself handles; one entry covers them.
"""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path

from fd_async import errors

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
INTERNAL = (ROOT / "tests" / "data" / "internal_errors.txt").read_text(encoding="utf-8").splitlines()
HOLE = "…"
ORDERS = (
    "accept|add|ask|call|check|choose|continue|copy|correct|delete|empty|end it|expected(?= [^…])|export|fix|free|give|"
    "go|install|keep|leave|listen|look|lower|make|name|pip install|put|raise|record|remove|rename|repair|restart|"
    "run(?= [^…])|say|see docs|set|start|take|try|upgrade|use|wait|write"
)
CURE = re.compile(
    rf"(?:[:;,.({HOLE}]|\bor|\band) (?:or |then )?`?(?:{ORDERS})\b(?![.=])|, e\.g\. ",
    re.IGNORECASE,
)
WORDS = 2
"""A text with fewer words of its own passes on what another place said."""


def sources() -> dict[str, str]:
    """Return the package's files by path."""
    paths = sorted((ROOT / "fd_async").rglob("*.py"))
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def error_names(files: dict[str, str]) -> set[str]:
    """Return the names of all FdError classes: those of errors.py and those that rooms derive."""
    names = {name for name, _ in inspect.getmembers(errors, inspect.isclass)}
    classes = [
        found for text in files.values() for found in re.findall(r"^class (\w+)\(([^)]+)\):", text, re.MULTILINE)
    ]
    for _ in range(3):  # the depth of the tree
        names |= {name for name, bases in classes if not names.isdisjoint(re.findall(r"\w+", bases))}
    return names


def last(node: ast.expr) -> str:
    """Return the last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def texts(node: ast.expr, known: dict[str, list[str]]) -> list[str]:
    """Return what an expression may print, with a hole for all that is not written in the code."""
    match node:
        case ast.Constant(value=str(value)):
            return [value]
        case ast.JoinedStr(values=values):
            return joined([texts(value, known) for value in values])
        case ast.FormattedValue(value=value):
            return texts(value, known)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return joined([texts(left, known), texts(right, known)])
        case ast.IfExp(body=body, orelse=orelse):
            return texts(body, known) + texts(orelse, known)
        case ast.Name(id=name):
            return known.get(name, [HOLE])
    return [HOLE]


def joined(parts: list[list[str]]) -> list[str]:
    """Return every way to put one alternative of each part behind the other; the first few where there are many."""
    found = [""]
    for part in parts:
        found = [head + tail for head in found for tail in part][:16]
    return found


def constants(nodes: list[ast.stmt], known: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the texts of names that are set there, in nested blocks too."""
    found = dict(known)
    for statement in nodes:
        for node in ast.walk(statement):
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                name, said = node.targets[0].id, texts(node.value, found)
                old = found.get(name, []) if name not in known else []
                found[name] = list(dict.fromkeys(old + said))
    return found


@cache
def messages() -> list[tuple[str, str, str]]:
    """Return file:line, class and text of each FdError that the package makes."""
    files = sources()
    names = error_names(files)
    result: list[tuple[str, str, str]] = []
    for path, source in files.items():
        if not re.search(rf"\b(?:{'|'.join(names)})\(", source):
            continue
        module = ast.parse(source)
        shared = constants([node for node in module.body if isinstance(node, ast.Assign)], {})
        functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        scopes: list[ast.Module | ast.FunctionDef | ast.AsyncFunctionDef] = [module, *functions]
        seen: dict[int, tuple[str, str, list[str]]] = {}
        for scope in scopes:  # an inner function comes after the outer one and knows more
            calls = [node for node in ast.walk(scope) if isinstance(node, ast.Call) and last(node.func) in names]
            known = constants(scope.body, shared) if calls and scope is not module else shared
            for node in calls:
                if node.args:
                    seen[id(node)] = f"{path}:{node.lineno}", last(node.func), texts(node.args[0], known)
        for place, name, found in seen.values():
            result += [(place, name, text) for text in found]
    return result


def quoted() -> list[str]:
    """Return the messages that the page quotes."""
    headings = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
    return headings + [row for row in re.findall(r"^\| `([^|]+)` \|", PAGE, re.MULTILINE) if " " in row]


def covers(quote: str, text: str) -> bool:
    """Say whether the pieces of a quote stand in a text, in their order."""
    pieces = [re.escape(piece.strip()) for piece in quote.split(HOLE) if len(piece.strip(" ,.:;()=")) > 4]
    return bool(pieces) and re.search(".*".join(pieces), text, re.DOTALL) is not None


def is_covered(text: str) -> bool:
    """Say whether a user who meets this line is told what to do."""
    return CURE.search(text) is not None or any(covers(quote, text) for quote in [*quoted(), *INTERNAL])


def test_every_error_says_what_to_do_or_the_page_does() -> None:
    """Write the cure into the line, or an entry into docs/troubleshooting.md."""
    bare = [
        f"{place} {name}: {text}"
        for place, name, text in messages()
        if len(re.findall(r"[A-Za-z]{2,}", text)) >= WORDS and not is_covered(text)
    ]
    assert bare == []


def test_internal_errors_are_still_raised() -> None:
    """The list shrinks with the code."""
    found = [text for _, _, text in messages()]
    assert [line for line in INTERNAL if not any(covers(line, text) for text in found)] == []


def test_a_line_without_a_cure_is_found() -> None:
    """An order counts, a word that only looks like one does not."""
    assert is_covered("data.eval is empty: name statements with --suite")
    assert is_covered("learner.ranks = …: raise it, or lower learner.zero_stage")
    assert not is_covered("nothing fits: run.dir is odd")
    assert not is_covered("the moon is full; run … stands there")


def test_texts_are_read_through_names_and_branches() -> None:
    """What stands in a constant, a local name or an alternative is part of the line."""
    found = {text for _, _, text in messages()}
    assert any(text.startswith("…: cannot … the ledger") and "MiB are free there" in text for text in found)
    assert {"--config FILE is missing, e.g. --config configs/tiny_fd.toml", "the verifier is closed"} <= found
    assert len(found) > 300
