"""The live page's server: what it answers, to whom, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp.test_utils import TestClient, TestServer

from fd_async.cli.main import main
from fd_async.data.ledger import open_ledger
from fd_async.errors import PreflightError
from fd_async.viewer.server import serve
from fd_async.viewer.server.guard import Guard, is_loopback
from fd_async.viewer.server.routes import make_app
from tests.fakes.run_folder import write_run
from tests.unit.data.test_ledger import make_rollout, put

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo", num_steps=4, num_attempts=24)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A run that a test may change."""
    return write_run(tmp_path / "run", num_steps=2, num_attempts=3)


@asynccontextmanager
async def client_of(run: Path, *, token: str = "") -> AsyncIterator[TestClient]:
    async with TestClient(TestServer(make_app(run, Guard("127.0.0.1", token)))) as client:
        yield client


async def read(client: TestClient, path: str, **query: str) -> Any:
    async with client.get(path, params=query) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_the_page_is_a_shell_with_the_projects_own_script_and_style(run: Path) -> None:
    """No inline script, nothing from elsewhere, and a policy that allows no more."""
    async with client_of(run) as client:
        for path in ("/", "/attempts", "/config"):
            async with client.get(path) as answer:
                page = await answer.text()
                policy = answer.headers["Content-Security-Policy"]
            assert page.count("<script") == 1
            assert '<script src="/page.js"></script>' in page
            assert "style=" not in page
            assert "http" not in page
            assert "unsafe" not in policy
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        for path, kind in (("/page.js", "text/javascript"), ("/page.css", "text/css")):
            async with client.get(path) as answer:
                assert answer.content_type == kind
                assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_list_the_counts_and_an_attempt_agree(run: Path) -> None:
    """What the list promises the attempt has."""
    async with client_of(run) as client:
        page = await read(client, "/api/attempts", verdict="failed", limit="5")
        counts = await read(client, "/api/counts", verdict="failed")
        assert len(page["lines"]) == 5
        assert page["more"]
        assert counts["matching"] == counts["facets"]["verdict"]["failed"] > 5
        assert counts["total"] == (await read(client, "/api/status"))["attempts"] == 24
        rest = await read(client, "/api/attempts", verdict="failed", before=str(page["lines"][-1]["seq"]))
        assert len(page["lines"]) + len(rest["lines"]) == counts["matching"]
        assert not rest["more"]
        scored = (await read(client, "/api/attempts", scored="yes"))["lines"][0]
        attempt = await read(client, "/api/attempt", id=scored["id"])
        assert (attempt["name"], attempt["verdict"]) == (scored["name"], scored["verdict"])
        assert attempt["gain"] == pytest.approx(scored["gain"], abs=1e-3)
        assert attempt["turns"][0]["role"] == "assistant"


async def test_what_the_address_may_not_say_is_refused_in_one_line(run: Path) -> None:
    """A wrong filter, a wrong number and an attempt that is not there."""
    async with client_of(run) as client:
        for path, status, said in (
            ("/api/attempts?colour=red", 400, "not a filter: Object contains unknown field `colour`"),
            ("/api/attempts?first_step=x", 400, "not a filter"),
            ("/api/attempts?before=-1", 400, "before: '-1' is not a number"),
            ("/api/attempt?id=nobody", 404, "the ledger has no attempt nobody"),
        ):
            async with client.get(path) as answer:
                assert answer.status == status
                assert said in (await answer.json(content_type=None))["error"]


@pytest.mark.parametrize(
    "query",
    [
        f"first_step=1{'0' * 30}", f"last_step={2**63}", "first_step=-1", f"before={'9' * 19}", f"before={'9' * 5000}",
        f"words={'a+' * 1000}", "scored=maybe", "limit=-1",
    ],
)  # fmt: skip
async def test_numbers_and_searches_beyond_all_measure_are_refused(run: Path, query: str) -> None:
    """They are the reader's mistake, and no error of the ledger or the server."""
    async with client_of(run) as client, client.get(f"/api/attempts?{query}") as answer:
        assert answer.status == 400
        assert "not a " in json.loads(await answer.text())["error"]


async def test_nothing_but_get_is_answered(run: Path) -> None:
    """There is nothing to change."""
    async with client_of(run) as client:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            for path in ("/", "/api/attempts", "/elsewhere"):
                async with client.request(method, path) as answer:
                    assert answer.status == 405


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8642", "", "[::1", "169.254.169.254"])
async def test_a_name_that_is_not_this_machines_is_refused(run: Path, host: str) -> None:
    """A site whose name was made to point here (DNS rebinding) gets nothing."""
    async with client_of(run) as client:
        for path in ("/", "/api/status", "/page.js"):
            async with client.get(path, headers={"Host": host}) as answer:
                assert answer.status == 403
                assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1", "[::1]:8642"])
async def test_names_of_this_machine_are_answered_whatever_the_port(run: Path, host: str) -> None:
    """A tunnel (ssh -L) ends at another port."""
    async with client_of(run) as client, client.get("/api/status", headers={"Host": host}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({"Origin": "http://evil.example"}, "/api/status", 403),
        ({"Origin": "null"}, "/api/status", 403),
        ({"Origin": "http://["}, "/api/status", 403),
        ({"Origin": "http://localhost:1"}, "/api/status", 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "/page.js", 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "/api/status", 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, "/api/status", 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "/attempts", 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, "/api/status", 200),
    ],
)
async def test_other_sites_read_nothing_but_may_link_here(
    run: Path, headers: dict[str, str], path: str, status: int
) -> None:
    """A click on a link to an attempt works; a script, a frame or a form of another site gets nothing."""
    async with client_of(run) as client, client.get(path, headers=headers) as answer:
        assert answer.status == status


async def test_a_page_for_other_machines_needs_its_token(run: Path) -> None:
    """The address admits; what is shared afterwards does not."""
    async with client_of(run, token="secret") as client:
        for path in ("/", "/api/status", "/page.js", "/?token=wrong", "/?token="):
            async with client.get(path) as answer:
                assert answer.status == 403
        async with client.get("/attempts?verdict=failed&token=secret", allow_redirects=False) as answer:
            assert answer.status == 303
            assert answer.headers["Location"] == "/attempts?verdict=failed"
            assert "HttpOnly" in answer.headers["Set-Cookie"]
        async with client.get("/api/status", headers={"Host": "node7:8642"}) as answer:
            assert answer.status == 200


def test_only_loopback_goes_without_a_token() -> None:
    """A name that is no address may be anything."""
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "node7", ""))


async def test_what_a_run_records_meanwhile_appears(small: Path) -> None:
    """The mark changes with every attempt; the writer is never in the way, nor is the reader."""
    async with client_of(small) as client, open_ledger(small / "ledger.db") as ledger:
        before = await read(client, "/api/status")
        for ordinal in range(100, 120):
            await put(ledger, make_rollout(ordinal))
            await read(client, "/api/attempts")
        await anyio.sleep(0.6)
        after = await read(client, "/api/status")
        assert after["mark"] != before["mark"]
        assert after["attempts"] == before["attempts"] + 20
        assert (await read(client, "/api/attempts"))["lines"][0]["id"] == make_rollout(119).id


async def test_a_ledger_that_cannot_be_read_is_one_line(small: Path) -> None:
    """The page stays, and says which file and what to do."""
    (small / "ledger.db").write_bytes(b"no database at all, " * 500)
    async with client_of(small) as client:
        for path in ("/api/attempts", "/api/counts", "/api/attempt?id=x"):
            async with client.get(path) as answer:
                assert answer.status == 503
                assert "the ledger is damaged" in (await answer.json())["error"]
        assert "the ledger is damaged" in (await read(client, "/api/status"))["notices"][0]
        async with client.get("/") as answer:
            assert answer.status == 200


async def test_a_run_before_its_first_attempt_has_an_empty_list(small: Path) -> None:
    """Missing files are no errors."""
    (small / "ledger.db").unlink()
    (small / "metrics.jsonl").unlink()
    async with client_of(small) as client:
        assert await read(client, "/api/attempts") == {"lines": [], "more": False}
        assert (await read(client, "/api/counts"))["total"] == 0
        assert (await read(client, "/api/status"))["notices"] == []
        assert (await read(client, "/api/overview"))["charts"] == []


async def test_a_taken_port_is_said_and_the_default_moves_on(run: Path) -> None:
    """A port that was asked for is never exchanged for another."""
    said: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PreflightError, match=r"port \d+ is taken: name another one, or leave --port out"):
            await serve(run, port=taken.getsockname()[1], say=said.append)
    with pytest.raises(PreflightError, match="no such address"):
        await serve(run, host="no-such-host.invalid", port=0, say=said.append)
    assert said == []


def test_a_file_and_a_server_exclude_each_other(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command does one of the two, and says what to leave out."""
    assert main(["view", str(run), "--out", "report.html", "--port", "8000"]) == 2
    assert "--out writes a file and serves nothing: leave out --port" in capsys.readouterr().err


async def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"no config\.toml there"):
        await serve(tmp_path)


def test_the_command_says_its_address_and_ends_when_told(run: Path) -> None:
    """Two viewers of one run stand side by side; a signal ends them with code 0, although a browser is connected."""
    command = [sys.executable, "-m", "fd_async.cli", "view", str(run)]
    with ExitStack() as stack:
        viewers = [stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) for _ in range(2)]
        for viewer in viewers:
            stack.callback(viewer.kill)
        lines = [viewer.stdout.readline() for viewer in viewers if viewer.stdout]
        assert all(line.startswith(f"fd-view: {run} at http://127.0.0.1:") for line in lines)
        ports = {int(line.partition(" at ")[2].split("/")[2].rpartition(":")[2]) for line in lines}
        assert len(ports) == 2
        for port in ports:
            browser = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            browser.sendall(b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in browser.recv(100)
        for viewer, number in zip(viewers, (signal.SIGINT, signal.SIGTERM), strict=True):
            viewer.send_signal(number)
        assert [viewer.wait(timeout=20) for viewer in viewers] == [0, 0]
