"""A slow reading of Lean's lexical rules, one character at a time, written apart from the project's lexer."""

from __future__ import annotations

LETTER_LIKE = [(0x3B1, 0x3C9), (0x391, 0x3A9), (0x3CA, 0x3FB), (0x1F00, 0x1FFE), (0x2100, 0x214F), (0x1D49C, 0x1D59F)]
NOT_LETTERS = (0x3BB, 0x3A0, 0x3A3)
SUBSCRIPTS = [(0x2080, 0x2089), (0x2090, 0x209C), (0x1D62, 0x1D6A), (0x2C7C, 0x2C7C)]


def words_in_code(text: str) -> list[str]:
    """Return the names and keywords that stand outside of comments, strings and characters."""
    words: list[str] = []
    at = 0
    while at < len(text):
        if text[at : at + 2] == "--":
            while at < len(text) and text[at] != "\n":
                at += 1
        elif text[at : at + 2] == "/-":
            at = after_block(text, at)
        elif text[at] == '"':
            at = after_string(text, at)
        elif text[at] == "'" and character_length(text, at):
            at += character_length(text, at)
        elif is_first(text[at]):
            end = after_name(text, at)
            words.append(text[at:end])
            at = end
        elif text[at] in "0123456789":
            at = after_number(text, at)
        else:
            at += 1
    return words


def is_first(char: str) -> bool:
    code = ord(char)
    if char == "_" or "a" <= char <= "z" or "A" <= char <= "Z":
        return True
    return code not in NOT_LETTERS and any(low <= code <= high for low, high in LETTER_LIKE)


def is_rest(char: str) -> bool:
    return is_first(char) or char in "0123456789'!?" or any(low <= ord(char) <= high for low, high in SUBSCRIPTS)


def after_name(text: str, at: int) -> int:
    while True:
        while at < len(text) and is_rest(text[at]):
            at += 1
        if text[at : at + 1] == "." and at + 1 < len(text) and is_first(text[at + 1]):
            at += 1
            continue
        return at


def after_block(text: str, at: int) -> int:
    depth = 0
    while at < len(text):
        if text[at : at + 2] == "/-":
            depth, at = depth + 1, at + 2
        elif text[at : at + 2] == "-/":
            depth, at = depth - 1, at + 2
            if depth == 0:
                return at
        else:
            at += 1
    return at


def after_string(text: str, at: int) -> int:
    at += 1
    while at < len(text) and text[at] != '"':
        at += 2 if text[at] == "\\" else 1
    return at + 1


def character_length(text: str, at: int) -> int:
    """Length of a character literal, or 0."""
    if text[at + 1 : at + 2] == "\\":
        for length in (4, 6, 8):
            body = text[at + 2 : at + length - 1]
            escaped = {4: len(body) == 1 and body not in 'xu"', 6: body[:1] == "x", 8: body[:1] == "u"}[length]
            digits = all(char in "0123456789abcdefABCDEF" for char in body[1:])
            if escaped and digits and text[at + length - 1 : at + length] == "'":
                return length
        return 0
    return 3 if text[at + 1 : at + 2] not in ("", "'", '"') and text[at + 2 : at + 3] == "'" else 0


def after_number(text: str, at: int) -> int:
    digits = {"0x": "0123456789abcdefABCDEF_", "0b": "01_", "0o": "01234567_"}.get(text[at : at + 2].lower())
    if digits and text[at + 2 : at + 3] and text[at + 2] in digits:
        at += 2
        while at < len(text) and text[at] in digits:
            at += 1
        return at
    while at < len(text) and text[at] in "0123456789_":
        at += 1
    if text[at : at + 1] == "." and text[at + 1 : at + 2].isdigit():
        at += 1
        while at < len(text) and text[at] in "0123456789":
            at += 1
    if text[at : at + 1] in ("e", "E"):
        sign = 1 if text[at + 1 : at + 2] in ("+", "-") else 0
        if text[at + 1 + sign : at + 2 + sign].isdigit():
            at += 1 + sign
            while at < len(text) and text[at] in "0123456789":
                at += 1
    return at
