"""Configurations that people might write: the shipped ones, changed by chance, through the real commands."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from fd_async.config.describe import keys
from tests.fuzz.report import Report, run_command

ROOT = Path(__file__).parents[2]
CODES = frozenset({0, 2, 3})

VALUES = (
    "0", "-1", "1", "1e400", "-0.0", "nan", "inf", "-inf", "9" * 30, "9" * 5000, "1e-320", "0x7fffffffffffffff",
    '""', '"x"', '"\\u0000"', '"' + "ä" * 300 + '"', '"../../.."', '"/"', '"/dev/null"', '"~"', '"~nobody_/x"',
    '"\\n\\n"',
    '"a\\u202Eb"', '"http://"', '"http://[::1"', '"file:///etc/passwd"', "[]", "[[]]", '["", ""]', "[1, 1]",
    "[0, 0.5]",
    "{}", "{a = 1}", "true", "false", "1979-05-27T07:32:00Z", "07:32:00", "[1e308, 1e308]", '["x", 3]',
    "'''\nlines\n'''",
    '"' + "x" * 70000 + '"', "1_000", "[true]", '[""]', '"one\\ttwo"', '"%s{}%d"', '"[red]x[/red]"', '"configs"',
    "4096", "2", "0.5", "1.0", "8", "16",
)  # fmt: skip
SETS = (
    "", "=", "a", "a=b", "run", "run.name", "run.name=", "run.name=..", "run.name=a/b", "run.dir=", "run.=1",
    ".seed=1",
    "run.seed", "run.seed=-1", "run.seed.x=1", "learner.lr=nan", "learner.lr=1e999", "learner.betas=[1]",
    "fallback.type=3",
    "data.eval=[]", "data.eval=[1]", "data.train=\x01", "run.seed=1\nrun.name=2", "feedback.outage=fallback",
    "=run.seed=1", "ünï.cödé=1", "policy.servers=['x']", "policy.engine=servers", "learner.ranks=9999999999",
    "rollout.concurrency=" + "9" * 4400, "model.path=", "data.train=", "run.seed=" + "[" * 3000,
)  # fmt: skip


def fuzz(cases: int, seed: int, folder: Path, *, checks: int = 0) -> Report:
    """Try `cases` configurations with `fd-run --dry-run` and `checks` more with `fd-check --quick`.

    Relative paths are those of the checkout, as for people who stand in it.
    """
    report = Report()
    shipped = sorted((ROOT / "configs").glob("*.toml"))
    tiny = [ROOT / "configs" / "tiny_fd.toml", ROOT / "configs" / "tiny_grpo.toml"]
    overlays = sorted((ROOT / "configs" / "feedback").glob("*.toml"))
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        for case in range(cases + checks):
            dice = random.Random(f"configs/{seed}/{case}")
            command = ["check", "--quick"] if case >= cases else ["run", "--dry-run"]
            base = dice.choice(tiny if dice.random() < 0.8 else shipped)
            file = folder / "mutated.toml"
            file.write_bytes(mutate(base.read_bytes(), dice))
            argv = [*command, "--config", str(file)]
            for _ in range(dice.choice((0, 0, 0, 0, 0, 1, 2))):
                overlay = folder / "overlay.toml"
                overlay.write_bytes(mutate(dice.choice(overlays).read_bytes(), dice))
                argv += [
                    "--config",
                    str(dice.choice((overlay, *dice.sample(overlays, 3), folder, folder / "none.toml"))),
                ]
            for _ in range(dice.choice((0, 0, 1, 2))):
                argv += ["--set", random_set(dice)]
            given = f"{argv}\n{file.read_bytes()[:3000]!r}"
            run_command(argv, report, given, codes=CODES)
    finally:
        os.chdir(before)
    return report


def random_set(dice: random.Random) -> str:
    """Return the argument of a `--set`."""
    return dice.choice(SETS) if dice.random() < 0.4 else f"{dice.choice(list(keys()))}={dice.choice(VALUES)}"


def mutate(text: bytes, dice: random.Random) -> bytes:
    """Change a TOML file in one to four ways."""
    for _ in range(dice.choice((0, 1, 1, 1, 2, 4))):
        text = dice.choice(MUTATIONS)(text, dice)
    return text


def _line(change: Callable[[bytes, random.Random], bytes]) -> Callable[[bytes, random.Random], bytes]:
    """Apply `change` to one line that has a key."""

    def apply(text: bytes, dice: random.Random) -> bytes:
        lines = text.split(b"\n")
        places = [number for number, line in enumerate(lines) if b"=" in line]
        if places:
            place = dice.choice(places)
            lines[place] = change(lines[place], dice)
        return b"\n".join(lines)

    return apply


def _value(line: bytes, dice: random.Random) -> bytes:
    return line.partition(b"=")[0] + b"= " + dice.choice(VALUES).encode()


def _any_key(text: bytes, dice: random.Random) -> bytes:
    """Set any key of the schema below its table's header, which may stand in the file twice then."""
    table, name = dice.choice(list(keys())).split(".")
    return text + f"\n[{table}]\n{name} = {dice.choice(VALUES)}\n".encode()


def _set_in_place(text: bytes, dice: random.Random) -> bytes:
    table, name = dice.choice(list(keys())).split(".")
    header, line = f"[{table}]".encode(), f"{name} = {dice.choice(VALUES)}".encode()
    return text.replace(header, header + b"\n" + line, 1) if header in text else text + b"\n" + header + b"\n" + line


def _bytes(text: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(text) + 1)
    return text[:place] + dice.randbytes(dice.choice((1, 3, 40))) + text[place + dice.choice((0, 1, 9)) :]


def _cut(text: bytes, dice: random.Random) -> bytes:
    return text[: dice.randrange(len(text) + 1)]


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _line(_value), _line(_value), _line(_value), _set_in_place, _set_in_place, _set_in_place, _any_key, _bytes, _cut,
    _line(lambda line, dice: line + b"\n" + line),
    _line(lambda line, dice: line.replace(b"=", dice.choice((b"", b"==", b":", b".x =", b"\xff=",
    b" \xe2\x80\xa8=")))),
    _line(lambda line, dice: dice.choice((b"x", "ключ".encode(), b'"a b"', b"a.b.c", b"''")) + b" = " + line[:9]),
    lambda text, dice: text.replace(b"[", dice.choice((b"[[", b"[x.", b"", b"[ ")), dice.choice((1, 99))),
    lambda text, dice: dice.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\r\n", b"", b"\x1f\x8b")) + text,
    lambda text, dice: text.replace(b"\n", dice.choice((b"\r\n", b"\r", b"\n\n", b"\x0b"))),
    lambda text, dice: dice.randbytes(200),
    lambda text, dice: b"x = " + b"[" * dice.choice((50, 3000)) + text,
    lambda text, dice: text + b"\n" + b".".join([b"a"] * dice.choice((5, 3000))) + b" = 1\n",
    lambda text, dice: b"model = 3\n" + text,
    lambda text, dice: text.upper() if dice.random() < 0.3 else text.swapcase(),
)  # fmt: skip
