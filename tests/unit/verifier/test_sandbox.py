"""Attacks from inside the sandbox: every one must fail, with the filter of system calls and by namespaces alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import structlog

from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import PreflightError
from fd_async.verifier.locate import locate_minilean, lock_in
from fd_async.verifier.repl.process import open_repl
from fd_async.verifier.sandbox import room as sandbox
from fd_async.verifier.sandbox.probe import probe_sandbox
from fd_async.verifier.sandbox.room import Limits, Room, launch_argv, unsandboxed_wrapper
from fd_async.verifier.sandbox.syscalls import machine

needs_filter = pytest.mark.skipif(not machine(), reason="there is no filter of system calls for this machine")


def table(**changes: Any) -> VerifierTable:
    settings: dict[str, Any] = {"backend": "minilean", "workers": 1, "sandbox_scratch_mib": 4}
    return VerifierTable(**{**settings, **changes})


@cache
def problem() -> str | None:
    """Why bubblewrap cannot be tried here."""
    room = locate_minilean(table())[0].room
    assert room is not None
    return probe_sandbox(room)


@pytest.fixture(params=["filtered", "namespaces alone"])
def room(request: pytest.FixtureRequest) -> Room:
    """The room of minilean, and the same without the filter."""
    if problem() is not None:
        pytest.skip(str(problem()))
    found = locate_minilean(table())[0].room
    assert found is not None
    return replace(found, may_fork=request.param != "filtered")


def start(room: Room, code: str, *args: object, limits: Limits | None = None, **options: Any) -> subprocess.Popen[str]:
    """Run Python code as a worker runs, from a parent that has a secret."""
    argv = [sys.executable, "-I", "-S", "-c", code, *map(str, args)]
    command = launch_argv(argv, limits=limits or Limits(), wrapper=room.wrapper())
    env = {**os.environ, "ANTHROPIC_API_KEY": "sk-secret"}
    settings: dict[str, Any] = {"env": env, "start_new_session": True, "text": True, **options}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings
    )


def said(room: Room, code: str, *args: object, limits: Limits | None = None) -> str:
    """Return what the code prints in the room."""
    with start(room, code, *args, limits=limits) as process:
        return process.communicate(timeout=20)[0].strip()


def outcome(room: Room, attack: str, *args: object) -> str:
    """Return `done`, or the name of the error that stopped the attack."""
    lines = "\n    ".join(attack.strip().splitlines())
    code = f"import os, sys, socket, ctypes, signal\ntry:\n    {lines}\n    print('done')\n"
    return said(room, code + "except OSError as error:\n    print(type(error).__name__, error.errno)\n", *args)


def is_there(marker: str) -> bool:
    """Tell whether a process with this word in its command line lives; a zombie has none."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker.encode() in (entry / "cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


def becomes(wanted: bool, marker: str) -> bool:
    """Wait until a process is there, or is not."""
    until = time.monotonic() + 10
    while is_there(marker) is not wanted:
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_files_of_the_machine_the_user_and_the_run_are_not_there(room: Room, tmp_path: Path) -> None:
    """Neither the folder of the run, nor the repository, nor keys, nor other rollouts."""
    (tmp_path / "ledger.db").write_text("secret")
    repository = Path(__file__).parents[3]
    targets = ["/etc/shadow", "/etc/passwd", "/etc/hostname", "/root/.ssh", "/var/log", "/sys/class"]
    targets += [str(tmp_path / "ledger.db"), str(repository / "pyproject.toml"), str(repository / ".git")]
    found = said(room, "import os, sys; print([p for p in sys.argv[1:] if os.path.lexists(p)])", *targets)
    assert found == "[]"


def test_the_environment_has_no_secret_in_any_process_inside(room: Room) -> None:
    """The key is in the parent that starts the sandbox, and in nothing that can be read."""
    code = (
        "import os\nprint(sorted(os.environ))\n"
        "for p in filter(str.isdigit, os.listdir('/proc')):\n"
        "    try: print('sk-secret' in open(f'/proc/{p}/environ').read())\n"
        "    except OSError: print(False)\n"
    )
    names, *leaks = said(room, code).splitlines()
    assert "ANTHROPIC_API_KEY" not in names
    assert "HOME" in names
    assert set(leaks) == {"False"}


def test_nothing_outside_the_scratch_can_be_written(room: Room, tmp_path: Path) -> None:
    """Not the library that is checked against, not the checker, not the settings of the system."""
    folders = ["/", "/usr/lib", "/etc", "/dev", "/proc", "/root", str(tmp_path), str(Path(sandbox.__file__).parent)]
    for folder in folders:
        assert outcome(room, f"open({folder + '/x'!r}, 'w').close()").split()[0] in (
            "FileNotFoundError",
            "PermissionError",
            "OSError",
        )
    assert not any((Path(folder) / "x").exists() for folder in folders)
    assert outcome(room, "open('/proc/sys/kernel/core_pattern', 'w').write('x')") != "done"
    if os.getuid() != 0 or (machine() and not room.may_fork):
        assert outcome(room, "os.chmod('/dev/null', 0)") != "done"
    assert outcome(room, "open('/dev/null', 'w').write('x')") == "done"
    assert stat.S_IMODE(os.stat("/dev/null").st_mode) & 0o600


@pytest.mark.parametrize("kind", ["tcp", "abstract", "file"])
def test_no_socket_of_the_machine_is_reached(room: Room, tmp_path: Path, kind: str) -> None:
    """Not the network of this machine, not the sockets without a file, not those with one."""
    family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
    address: Any = {"tcp": ("127.0.0.1", 0), "abstract": f"\0fd{os.getpid()}", "file": str(tmp_path / "s")}[kind]
    with socket.socket(family) as server:
        server.bind(address)
        server.listen(1)
        target = server.getsockname()
        assert outcome(room, f"s = socket.socket(socket.{family.name})\ns.connect({target!r})") != "done"
        with socket.socket(family) as client:
            client.connect(target)  # the same works from outside


def test_other_processes_are_neither_seen_nor_signalled(room: Room) -> None:
    """Its own process, the first one inside, and nobody else."""
    seen = said(room, "import os; print(len([p for p in os.listdir('/proc') if p.isdigit()]), os.getppid())")
    assert seen == "2 1"
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            for pid, number in ((os.getpid(), 0), (stranger.pid, signal.SIGKILL)):
                assert outcome(room, f"os.kill({pid}, {number})") == f"ProcessLookupError {3}"
        finally:
            stranger.kill()


def test_it_has_no_privileges(room: Room) -> None:
    """No mounts, no devices, no capabilities, no way to get them."""
    call = "libc = ctypes.CDLL(None, use_errno=True)\nif libc.{} != 0: raise OSError(ctypes.get_errno(), 'no')"
    assert outcome(room, call.format("mount(b'x', b'/tmp', b'tmpfs', 0, None)")) == "PermissionError 1"
    assert outcome(room, call.format("umount2(b'/usr/lib', 0)")) == "PermissionError 1"
    assert outcome(room, "os.mknod('/tmp/mem', 0o20666, os.makedev(1, 1))") == "PermissionError 1"
    assert outcome(room, "open('/dev/mem')") == "FileNotFoundError 2"
    status = dict(line.split(":\t") for line in said(room, "print(open('/proc/self/status').read())").splitlines())
    assert {status[name].strip("0") for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")} == {""}
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split() == ["65534"] * 4


@needs_filter
def test_the_filter_refuses_processes_groups_traces_and_namespaces(room: Room) -> None:
    """So there is no fork bomb, no program that forges an answer on our pipe, no escape from the group."""
    if room.may_fork:
        pytest.skip("this room has no filter")
    call = "libc = ctypes.CDLL(None, use_errno=True)\nif libc.{} != 0: raise OSError(ctypes.get_errno(), 'no')"
    for attack in (
        "os.fork()",
        "os.posix_spawn('/bin/echo', ['echo'], {})",
        "os.setsid()",
        "os.setpgid(0, 0)",
        call.format("ptrace(16, 1, 0, 0)"),
        call.format("unshare(0x10000000)"),
        call.format("setns(0, 0)"),
        "socket.socketpair()",
    ):
        assert outcome(room, attack) == "PermissionError 1", attack
    threads = "import threading; t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()"
    assert said(room, threads) == "thread"


def test_the_scratch_is_private_bounded_and_empty_at_the_start(room: Room) -> None:
    """Neither many files nor a long one take the memory of the machine."""
    fill = (
        "import os\nprint([n for n in os.listdir('/tmp') if os.path.isfile('/tmp/' + n)])\nn = 0\n"
        "try:\n    while n < 64:\n        open(f'/tmp/{n}', 'wb').write(bytes(1 << 20)); n += 1\n"
        "except OSError as error: print(error.errno, n)\n"
    )
    for _ in range(2):
        assert said(room, fill).splitlines() == ["[]", "28 4"]
    long = "f = open('/tmp/f', 'wb')\nfor _ in range(64): f.write(bytes(1 << 16)); f.flush()"
    assert "File too large" in said(room, long, limits=Limits(file_mib=1))


def test_no_descriptor_but_the_three_pipes_comes_in(room: Room, tmp_path: Path) -> None:
    """Neither ours nor the one that the filter came through."""
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        code = "import os; print([d for d in range(256) if os.path.exists(f'/proc/self/fd/{d}')])"
        assert said(room, code) == "[0, 1, 2]"


def test_a_daemon_inside_ends_with_its_worker(room: Room) -> None:
    """A process of its own session that ignores every signal, two forks away."""
    if not room.may_fork:
        pytest.skip("the filter lets it start no process")
    marker = f"daemon-{os.getpid()}-{time.monotonic_ns()}"
    code = (
        "import os, signal, sys, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        for s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\n"
        "        os.close(0); print('up', flush=True); time.sleep(600)\n    os._exit(0)\n"
        "time.sleep(600)\n"
    )
    with start(room, code, marker) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert is_there(marker)
        os.killpg(process.pid, signal.SIGKILL)
        assert becomes(False, marker)


def test_stopping_the_group_stops_the_program_and_continuing_lets_it_answer(room: Room) -> None:
    """A long check is set aside this way."""
    marker = f"stopped-{os.getpid()}-{time.monotonic_ns()}"
    with start(
        room, "import sys\nprint('up', flush=True)\nfor line in sys.stdin: print('got', line, end='')", marker
    ) as p:
        assert p.stdin is not None
        assert p.stdout is not None
        assert p.stdout.readline() == "up\n"
        os.killpg(p.pid, signal.SIGSTOP)
        states = {line.split(")")[-1].split()[0] for line in _stats(p.pid)}
        until = time.monotonic() + 10
        while states != {"T"} and time.monotonic() < until:
            states = {line.split(")")[-1].split()[0] for line in _stats(p.pid)}
        assert states == {"T"}
        os.killpg(p.pid, signal.SIGCONT)
        assert p.communicate("hello\n", timeout=20)[0] == "got hello\n"


def _stats(group: int) -> list[str]:
    """Return /proc/*/stat of every process in a group."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "stat").read_text() if entry.name.isdigit() else ""
        except OSError:
            continue
        if line and int(line.rpartition(")")[2].split()[2]) == group:
            found.append(line)
    return found


@pytest.mark.parametrize("how", ["bubblewrap", "unsandboxed"])
def test_no_worker_outlives_a_killed_run(how: str) -> None:
    """SIGKILL leaves the run no time to clean up; the kernel does it."""
    wrapper = unsandboxed_wrapper()
    if how == "bubblewrap":
        if problem() is not None:
            pytest.skip(str(problem()))
        found = locate_minilean(table())[0].room
        assert found is not None
        wrapper = found.wrapper()
    elif not wrapper:
        pytest.skip("there is no setpriv")
    marker = f"orphan-{os.getpid()}-{time.monotonic_ns()}"
    argv = [sys.executable, "-I", "-S", "-c", "import time; print('up', flush=True); time.sleep(600)", marker]
    without_filter = [word for word in wrapper if word not in ("--seccomp", "9")]
    command = launch_argv(argv, limits=Limits(), wrapper=without_filter)
    code = "import json, subprocess, sys; subprocess.Popen(json.loads(sys.argv[1]), start_new_session=True).wait()"
    with subprocess.Popen([sys.executable, "-c", code, json.dumps(command)], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"up\n"
        run.kill()
        assert becomes(False, marker)


@pytest.mark.anyio
async def test_minilean_checks_proofs_inside() -> None:
    """With all its libraries, the native one too."""
    if problem() is not None:
        pytest.skip(str(problem()))
    spec, _ = locate_minilean(table())
    async with open_repl(lock_in(spec, table(), structlog.get_logger()), "") as repl:
        answer = await repl.command("theorem t (a b : Nat) (h : a < b) : a + 1 ≤ b := by omega", timeout_s=20)
        assert not answer.errors
        assert (await repl.command("theorem f : 1 = 2 := by omega", timeout_s=20)).errors


FAKES = {
    "broken": ("echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1", "no user namespaces.*AppArmor"),
    "old": ("echo 'bwrap: Unknown option --size' >&2; exit 1", "bubblewrap 0.7 or newer"),
    "nested": ('echo "bwrap: Can\'t mount proc on /newroot/proc: denied" >&2; exit 1', "systempaths=unconfined"),
    "open": (
        'while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
        "the sandbox has a hole: it reaches the network",
    ),
}


@pytest.mark.parametrize("kind", FAKES)
def test_a_sandbox_that_does_not_hold_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One line says what happened, what to do, and the words that turn it off."""
    script, words = FAKES[kind]
    (tmp_path / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    config = table(sandbox="bubblewrap")
    with pytest.raises(PreflightError, match=rf'verifier\.sandbox = "bubblewrap": .*{words}.*"unsandboxed"') as caught:
        lock_in(locate_minilean(config)[0], config, structlog.get_logger())
    assert "\n" not in str(caught.value)


def test_a_missing_bubblewrap_ends_the_start_unless_minilean_may_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the small checker, which runs no foreign code, and only where the config says so."""
    monkeypatch.setattr("fd_async.verifier.sandbox.probe.find_bubblewrap", lambda: None)
    log: Any = structlog.testing.CapturingLogger()
    for config in (table(), table(backend="repl", sandbox="bubblewrap_if_it_works")):
        with pytest.raises(PreflightError, match=r"bubblewrap \(`bwrap`\) is not installed.*apt"):
            lock_in(locate_minilean(config)[0], config, log)
    assert not log.calls
    config = table(sandbox="bubblewrap_if_it_works")
    spec = lock_in(locate_minilean(config)[0], config, log)
    assert spec.wrapper == unsandboxed_wrapper()
    assert [call.method_name for call in log.calls] == ["info"]


def test_running_unsandboxed_is_said_at_every_start() -> None:
    """A warning, also where bubblewrap would work."""
    log: Any = structlog.testing.CapturingLogger()
    config = table(sandbox="unsandboxed")
    lock_in(locate_minilean(config)[0], config, log)
    (call,) = log.calls
    assert call.method_name == "warning"
    assert "unsandboxed" in call.args[0]


@pytest.mark.parametrize("folder", ["/", "~", "."])
def test_a_folder_that_would_show_too_much_is_found(folder: str) -> None:
    """`verifier.sandbox_read` is no way to show the user's or the run's folder by mistake."""
    if problem() is not None:
        pytest.skip(str(problem()))
    config = table(sandbox_read=[str(Path(folder).expanduser().resolve())])
    with pytest.raises(PreflightError, match=r"too much|has a hole: it sees"):
        lock_in(locate_minilean(config)[0], config, structlog.get_logger())


def test_links_on_the_way_to_a_file_are_shown_and_others_are_not(room: Room, tmp_path: Path) -> None:
    """A library in a folder that is a link is found inside under the same name."""
    (tmp_path / "real" / "lib").mkdir(parents=True)
    (tmp_path / "real" / "lib" / "x").write_text("found")
    (tmp_path / "real" / "secret").write_text("secret")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "other").symlink_to("real/secret")
    linked = replace(room, read=(*room.read, str(tmp_path / "link" / "lib"), str(tmp_path / "nowhere")))
    code = (
        "import os, sys; p = sys.argv[1]\n"
        "print(open(p + '/link/lib/x').read(), sorted(os.listdir(p)), os.listdir(p + '/real'))"
    )
    assert said(linked, code, tmp_path) == "found ['link', 'real'] ['lib']"
