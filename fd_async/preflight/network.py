"""Ports to open and machines to reach: the metrics endpoint, vLLM servers, hosts of learner ranks. Starts nothing.

Other hosts are asked for their time through ssh, which tells at once whether a launcher could start a rank there and
whether the clocks agree.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fd_async.config.schema import FeedbackTable, RunConfig
from fd_async.errors import PreflightError
from fd_async.preflight.findings import Finding
from fd_async.preflight.reaching import reach

_SSH_TIMEOUT_S = 8.0
_MOST_AT_ONCE = 16
_SKEW_S = 5.0
"""Clocks further apart make a shared disk's times, logs and certificates disagree."""


def _metrics(config: RunConfig) -> Iterator[Finding]:
    host, port = config.telemetry.prometheus_host, config.telemetry.prometheus_port
    if not port:
        return
    advice = "change telemetry.prometheus_port or prometheus_host, or set the port to 0"
    yield _free(host, port, "/metrics", advice)


def _link(config: RunConfig) -> Iterator[Finding]:
    """Look whether ranks of other nodes could connect to `learner.controller_address`, if it names a port."""
    if not config.learner.hostfile:
        return
    from fd_async.learner import hosts  # brings the event loop, which one machine does without

    try:
        host, port = hosts.endpoint(config)
    except PreflightError as error:
        yield Finding("missing", "controller", str(error), "docs/learner.md, several nodes")
        return
    if not hosts.is_this_machine(host):
        found = f"learner.controller_address = {config.learner.controller_address!r} is no address of this machine"
        yield Finding("missing", "controller", found, "set it to a name or address of this machine, or run there")
    elif port:
        yield _free(host, port, "controller", "change the port in learner.controller_address, or leave it out")


def _free(host: str, port: int, name: str, advice: str) -> Finding:
    try:
        with socket.create_server((host, port)):
            return Finding("ok", name, f"{host}:{port} is free")
    except OSError as error:
        why = error.strerror or str(error)
        return Finding("missing", name, f"{host}:{port}: {why.partition(' (while')[0]}", advice)


def _servers(config: RunConfig) -> Iterator[Finding]:
    policy = config.policy
    if policy.engine != "servers":
        return
    problems = reach(policy.servers)
    silent = [f"{url}: {problem}" for url, problem in problems.items() if problem]
    advice = "start them with bin/fd-serve and this configuration, or correct policy.servers"
    if len(silent) == len(problems):
        yield Finding("missing", "servers", f"none answers; {silent[0]}", advice)
    elif silent:
        found = f"{len(problems) - len(silent)} of {len(problems)} answer; {'; '.join(silent)}"
        yield Finding("note", "servers", found, f"the run starts without them and takes them in later; {advice}")
    else:
        yield Finding("ok", "servers", f"all {len(problems)} answer")
    if policy.servers_key_env and not os.environ.get(policy.servers_key_env):
        found = f"{policy.servers_key_env} is not set"
        yield Finding(
            "missing", "servers' key", found, "export it with the servers' text, or change policy.servers_key_env"
        )


def _provider(config: RunConfig) -> Iterator[Finding]:
    """Look whether the provider of feedback can be reached: a node without internet is the usual surprise."""
    tables: dict[str, FeedbackTable] = {"feedback": config.feedback} if config.algorithm.type == "fd" else {}
    if tables and config.feedback.outage == "fallback":
        tables["fallback"] = config.fallback
    usual = {"anthropic": "https://api.anthropic.com", "openai": "https://api.openai.com"}
    variables = {"anthropic": "ANTHROPIC_BASE_URL", "openai": "OPENAI_BASE_URL"}
    for name, table in tables.items():
        if table.type not in usual:
            continue
        url = table.base_url or os.environ.get(variables[table.type]) or usual[table.type]
        problem = reach([url])[url]
        if problem:
            advice = f"let this machine reach it, directly or by https_proxy, or change {name}.base_url or {name}.type"
            yield Finding("missing", f"{name} provider", f"{url}: {problem}", advice)
        else:
            yield Finding("ok", f"{name} provider", f"{url} answers")


def _nodes(config: RunConfig) -> Iterator[Finding]:
    """Ask the other hosts of the hostfile for their time, the way the launcher goes."""
    learner = config.learner
    if not learner.hostfile:
        return
    from fd_async.learner import hosts

    try:
        names = [host.name for host in hosts.read_hostfile(Path(learner.hostfile))]
    except PreflightError:
        return  # said by the learner's probe
    away = [name for name in names if not hosts.is_this_machine(name)]
    if not away:
        return
    ask = _by_ssh if learner.launcher in ("ssh", "pdsh") and shutil.which("ssh") else _by_name
    with ThreadPoolExecutor(min(_MOST_AT_ONCE, len(away))) as pool:
        answers = dict(zip(away, pool.map(ask, away), strict=True))
    problems = [f"{name}: {answer}" for name, answer in answers.items() if isinstance(answer, str)]
    skews = {name: answer for name, answer in answers.items() if isinstance(answer, float) and abs(answer) > _SKEW_S}
    if problems:
        advice = "`ssh HOST true` must work without a password from here; or take the host out of learner.hostfile"
        yield Finding("missing", "hosts", "; ".join(problems), advice)
    else:
        yield Finding("ok", "hosts", f"{', '.join(away)} answer")
    if skews:
        found = ", ".join(f"{name} is {skew:+.0f} s from this machine" for name, skew in skews.items())
        yield Finding("note", "clocks", found, "set them by NTP (chrony): times of shared files and logs disagree")


def _by_name(host: str) -> str | float:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return "the name is not known here"
    return 0.0


def _by_ssh(host: str) -> str | float:
    """Return why a host cannot be used, or the difference of its clock, seconds."""
    argv = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", host, "date +%s.%N"]
    before = time.time()
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SSH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"ssh did not answer within {_SSH_TIMEOUT_S:g} s"
    except OSError as error:
        return f"ssh: {error.strerror}"
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        return said[-1][:200] if said else f"ssh ended with exit code {done.returncode}"
    try:
        theirs = float(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return f"`date` answered {done.stdout.strip()[:80]!r}"
    now = time.time()
    return min((theirs - before, theirs - now), key=abs) if not before <= theirs <= now else 0.0


PROBES: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (_metrics, _link, _servers, _provider, _nodes)
"""In the order of the report."""
