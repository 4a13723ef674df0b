"""The compilers that a run calls while it starts: Triton's for every GPU, torch.compile's for vLLM. Looks only.

Triton compiles the stub that speaks to the driver with a C compiler and Python's headers, in vLLM's processes and for
the learner's kernels. torch.compile (`policy.enforce_eager = false`) asks for a C++ compiler: always on a CPU, on a GPU
for what little it keeps on the host. Nothing here asks for nvcc or ninja: vLLM's wheel brings its kernels, FlashInfer's
are left alone (`policy.launch`), and DeepSpeed steps with torch's own AdamW, offloaded or not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from fd_async.config.schema import RunConfig
from fd_async.preflight.findings import Finding
from fd_async.preflight.gpus import roles

_TIMEOUT_S = 15.0
_HEADERS = "#include <Python.h>\n#include <stdlib.h>\n"


def _c(config: RunConfig) -> Iterator[Finding]:
    if not roles(config):
        return
    compiler = _program("CC", ("gcc", "clang"))
    if not compiler:
        found = f"no C compiler ({_asked('CC', 'gcc, clang')}), and Triton compiles when vLLM and the learner start"
        yield Finding("missing", "C compiler", found, "install one: apt install gcc libc6-dev, or set CC")
        return
    headers = Path(sysconfig.get_paths(scheme=_scheme())["include"])
    if not (headers / "Python.h").is_file():
        found = f"no Python.h in {headers}, which Triton compiles with"
        advice = f"apt install python{sysconfig.get_python_version()}-dev, or take a Python that brings its headers"
        yield Finding("missing", "C compiler", found, advice)
    elif problem := _why_not(compiler, headers):
        found = f"{compiler} does not compile: {problem}"
        yield Finding("missing", "C compiler", found, "apt install gcc libc6-dev, or name another compiler with CC")
    else:
        yield Finding("ok", "C compiler", f"{compiler}, {headers}/Python.h")


def _cpp(config: RunConfig) -> Iterator[Finding]:
    policy = config.policy
    if policy.engine != "local" or policy.enforce_eager or _program("CXX", ("g++",)):
        return
    found = f"no C++ compiler ({_asked('CXX', 'g++')}), and policy.enforce_eager = false has torch compile the model"
    advice = "apt install g++, set CXX, or set policy.enforce_eager = true"
    yield Finding("note" if policy.gpus else "missing", "C++ compiler", found, advice)


def _program(variable: str, names: tuple[str, ...]) -> str:
    """Return what Triton and torch would call, in one word: what the variable says, else the first that is on PATH."""
    named = os.environ.get(variable)
    return next((name for name in (names if named is None else (named,)) if shutil.which(name)), "")


def _asked(variable: str, names: str) -> str:
    named = os.environ.get(variable)
    return f"{variable}, {names}" if named is None else f"{variable} = {named!r} is no program"


def _scheme() -> str:
    """Debian's own scheme, of which Triton says that its headers are elsewhere, stands for the usual one."""
    scheme = sysconfig.get_default_scheme()
    return "posix_prefix" if scheme == "posix_local" else scheme


def _why_not(compiler: str, headers: Path) -> str:
    """Have the compiler read the headers and write nothing; return its first complaint."""
    words = [compiler, "-E", "-x", "c", "-", "-o", os.devnull, f"-I{headers}"]
    try:
        done = subprocess.run(words, input=_HEADERS, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {_TIMEOUT_S:g} s"
    except OSError as error:
        return error.strerror or str(error)
    said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.strip().splitlines()
    return (said[0][:200] if said else f"exit code {done.returncode}") if done.returncode else ""


PROBES: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (_c, _cpp)
"""In the order of the report."""
