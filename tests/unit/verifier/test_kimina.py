"""The Kimina client against a local server with the real one's routes, line numbers and failures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from fd_async.errors import PreflightError, VerifierError
from fd_async.verifier.backend import CheckTimeout, LeanRequest
from fd_async.verifier.kimina import backend as kimina
from fd_async.verifier.kimina import wire as kimina_http
from fd_async.verifier.kimina.backend import KiminaBackend, open_kimina
from fd_async.verifier.verifier import Verifier, open_verifier
from tests.fakes.repl_kimina import FakeKimina, Plan, serve_kimina
from tests.unit.verifier.conftest import STATEMENT, fake_config, proof

pytestmark = pytest.mark.anyio

IMPORTS = "import Mathlib\nimport Aesop\nset_option maxHeartbeats 400000\nopen Nat"
REQUEST = LeanRequest(IMPORTS, "theorem foo : True := trivial")


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once, so that tests of retries do not wait."""
    monkeypatch.setattr(kimina, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(kimina, "_LONGEST_PAUSE_S", 0.01)


@asynccontextmanager
async def verifier_at(old: bool = False, **changes: Any) -> AsyncIterator[tuple[Verifier, FakeKimina]]:
    async with serve_kimina(old) as server:
        config = fake_config(backend="kimina", command=[], url=server.url, workers=4, **changes)
        async with open_verifier(config, output_chars=500) as verifier:
            yield verifier, server


@asynccontextmanager
async def backend_at(old: bool = False, **changes: Any) -> AsyncIterator[tuple[KiminaBackend, FakeKimina]]:
    options = {name: changes.pop(name) for name in ("key", "answer") if name in changes}
    async with serve_kimina(old, **options) as server:
        config = fake_config(backend="kimina", url=server.url, **{"workers": 4, "queue_timeout_s": 1.0, **changes})
        async with open_kimina(config) as backend:
            yield backend, server


@pytest.mark.parametrize("header", ["open Nat\nopen Int", IMPORTS])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("tactics", "kind"),
    [
        ("exact Or.inl hp", "proved"),
        ("exact fake_error", "failed"),
        ("sorry", "sorry"),
        ("exact fake_axiom", "axiom"),
        ("exact fake_hidden_sorry", "sorry"),
        ("exact fake_changed", "statement_changed"),
        ("exact fake_hang", "timeout"),
        ("exact fake_unclosed", "failed"),
    ],
)
async def test_verdicts_are_those_of_local_workers(tactics: str, kind: str, old: bool, header: str) -> None:
    """Both versions of the server give the same kinds, however they number lines."""
    async with verifier_at(old, header=header) as (verifier, server):
        verdict = await verifier.check(proof(tactics), STATEMENT)
        assert (verdict.kind, verdict.backend, verdict.toolchain) == (kind, "kimina", "leanprover/lean4:v4.33.0"), (
            verdict.reason
        )
        assert server.requests[-1][0] == ("/verify" if old else "/api/check")


@pytest.mark.parametrize("old", [False, True])
async def test_positions_are_those_of_the_models_file(old: bool) -> None:
    """Header lines do not count, whether the server takes imports off or not."""
    async with verifier_at(old, header=IMPORTS) as (verifier, _):
        verdict = await verifier.check(proof("exact fake_error"), STATEMENT)
        assert verdict.output == "2:8: error: unknown identifier 'fake_error'"


async def test_a_file_without_imports_never_shares_a_process() -> None:
    """The server would keep the first such file as everybody's environment."""
    async with backend_at() as (backend, server):
        for header, fresh in (("open Nat", True), ("", True), (IMPORTS, False)):
            await backend.run(LeanRequest(header, "theorem foo : True := trivial"))
            assert server.requests[-1][1]["reuse"] is not fresh
        await backend.run_fresh(REQUEST)
        assert server.requests[-1][1]["reuse"] is False


async def test_imports_stand_first_in_what_is_sent() -> None:
    """A comment before them would leave the server with an empty header."""
    async with backend_at() as (backend, server):
        await backend.run(LeanRequest("-- ours\nimport Mathlib\nopen Nat", "theorem foo : True := trivial"))
        code = server.requests[-1][1]["snippets"][0]["code"]
        assert code.startswith("import Mathlib\n-- ours\nopen Nat\n\ntheorem foo")


@pytest.mark.parametrize(
    ("routes", "used"),
    [
        ({"/api/check", "/verify"}, "/api/check"),
        ({"/verify"}, "/verify"),
        ({"/one_pass_verify_batch"}, "/one_pass_verify_batch"),
    ],
)
@pytest.mark.parametrize("missing_status", [404, 405])
async def test_the_route_is_found(routes: set[str], used: str, missing_status: int) -> None:
    """Newest first; a proxy may say 405 instead of 404."""
    async with serve_kimina() as server:
        server.routes, server.missing_status = routes, missing_status
        async with open_kimina(fake_config(backend="kimina", url=server.url, queue_timeout_s=0.1)) as backend:
            await backend.run(REQUEST)
            assert server.requests[-1][0] == used
            server.routes = set()
            with pytest.raises(VerifierError, match="HTTP 40"):
                await _soon(backend.run(REQUEST))


async def _soon(awaitable: Any) -> Any:
    with anyio.fail_after(15):
        return await awaitable


async def test_something_else_at_the_address_is_said() -> None:
    """None of the routes is there."""
    async with serve_kimina() as server:
        server.routes = set()
        with pytest.raises(PreflightError, match="no Kimina server here"):
            async with open_kimina(fake_config(backend="kimina", url=server.url)):
                pass


def _other_id(answer: dict[str, Any]) -> None:
    answer["results"][0].update(id="0123", custom_id="0123")


def _twice(answer: dict[str, Any]) -> None:
    answer["results"] *= 2


def _without_results(answer: dict[str, Any]) -> None:
    answer["results"] = []


def _header_timeout(answer: dict[str, Any]) -> None:
    answer["results"][0] = {
        "id": answer["results"][0]["id"],
        "error": "Lean REPL header command timed out in 5.0 seconds",
    }


def _unknown_environment(answer: dict[str, Any]) -> None:
    answer["results"][0]["response"] = {"message": "Unknown environment."}


def _dead_worker_of_old(answer: dict[str, Any]) -> None:
    said = {"severity": "error", "data": "error decoding json response in leanrepl"}
    answer["results"][0]["response"] = {"messages": [said], "time": 0.1}


def _nothing(answer: dict[str, Any]) -> None:
    answer["results"][0]["response"] = None


TROUBLE = {
    "overload": Plan(status=429),
    "overload with a wish": Plan(status=429, headers={"Retry-After": "0"}),
    "an unreadable wish": Plan(status=429, headers={"Retry-After": "soon"}),
    "an internal error": Plan(status=500, text='{"detail":"JSON decode error"}'),
    "a proxy without a server": Plan(status=502),
    "a restart behind a proxy": Plan(status=404),
    "a cut body": Plan(cut=True),
    "a closed connection": Plan(drop=True),
    "no JSON": Plan(raw=b"<html>"),
    "no UTF-8": Plan(raw=b'{"results": [{"id": "\xff", "error": "\xff"}]}'),
    "another check's answer": Plan(edit=_other_id),
    "two answers": Plan(edit=_twice),
    "no answer": Plan(edit=_without_results),
    "a header that loads too slowly": Plan(edit=_header_timeout),
    "a lost environment": Plan(edit=_unknown_environment),
    "a dead worker, dressed as Lean": Plan(edit=_dead_worker_of_old),
    "an empty response": Plan(edit=_nothing),
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE.keys())
async def test_trouble_of_the_server_is_retried_and_never_the_models(trouble: Plan) -> None:
    """Once: the proof gets its verdict. For good: infrastructure."""
    async with verifier_at(header=IMPORTS, queue_timeout_s=10.0) as (verifier, server):
        backend: Any = verifier._judge.backend
        before = verifier.statistics()["restarts"]
        server.plans = [trouble]
        assert (await verifier.check(proof("exact Or.inl hp"), STATEMENT)).kind == "proved"
        assert verifier.statistics()["restarts"] == before + 1
        server.plans = [trouble] * 500
        backend._config = replace(backend._config, queue_timeout_s=0.05)
        verdict = await verifier.check(proof("exact Or.inl (hp)"), STATEMENT)
        assert verdict.kind == "infrastructure"
        backend._config = replace(backend._config, queue_timeout_s=10.0)
        server.plans = []
        assert (await verifier.check(proof("exact Or.inl (hp)"), STATEMENT)).kind == "proved"


async def test_answers_to_other_checks_are_counted() -> None:
    """They show in the statistics like a worker out of step."""
    async with backend_at() as (backend, server):
        server.plans = [Plan(edit=_other_id)]
        await backend.run(REQUEST)
        assert backend.statistics()["desyncs"] == 1


async def test_a_file_that_kills_every_worker_is_not_sent_for_ever() -> None:
    """HTTP 500 ends after a few tries, however long the patience is."""
    async with backend_at(queue_timeout_s=600.0) as (backend, server):
        server.plans = [Plan(status=500)] * 50
        with pytest.raises(VerifierError, match="HTTP 500"):
            await backend.run(REQUEST)
        assert 50 - len(server.plans) == kimina._MOST_INTERNAL_ERRORS


async def test_the_wish_of_the_server_is_respected() -> None:
    """A wait that is longer than the patience is not begun."""
    async with backend_at(queue_timeout_s=5.0) as (backend, server):
        server.plans = [Plan(status=429, headers={"Retry-After": "3600"})] * 2
        with pytest.raises(VerifierError, match="HTTP 429"):
            await backend.run(REQUEST)
        assert len(server.plans) == 1


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(status=401), "refused the key in LEAN_SERVER_API_KEY"),
        (Plan(status=403), "refused the key in LEAN_SERVER_API_KEY"),
        (Plan(status=422, text="timeout: must be an integer"), "must be an integer"),
        (Plan(status=413), "HTTP 413"),
        (Plan(status=302, headers={"Location": "http://elsewhere/"}), "redirects to http://elsewhere/"),
    ],
)
async def test_what_the_server_refuses_is_not_retried(plan: Plan, words: str) -> None:
    """It will not get better, and the key is sent to no other address."""
    async with verifier_at(header=IMPORTS) as (verifier, server):
        server.plans = [plan, Plan(status=500)]
        verdict = await verifier.check(proof("exact Or.inl hp"), STATEMENT)
        assert (verdict.kind, len(server.plans)) == ("infrastructure", 1)
        assert words in verdict.reason


async def test_the_key_is_sent_and_a_wrong_one_ends_the_preflight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named, the key is not."""
    monkeypatch.setenv("LEAN_SERVER_API_KEY", "right")
    async with backend_at(key="right") as (backend, _):
        assert (await backend.run(REQUEST)).messages == []
    monkeypatch.setenv("LEAN_SERVER_API_KEY", "wrong")
    with pytest.raises(PreflightError, match="LEAN_SERVER_API_KEY") as caught:
        async with backend_at(key="right"):
            pass
    assert "wrong" not in str(caught.value)


async def test_an_answer_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, whatever a file prints."""
    async with backend_at() as (backend, server):
        monkeypatch.setattr(kimina_http, "_MAX_ANSWER_BYTES", 10_000)
        server.plans = [Plan(raw=b" " * 3_000_000)]
        with pytest.raises(VerifierError, match="longer than 10000 bytes"):
            await backend.run(REQUEST)


@pytest.mark.parametrize("plan", [Plan(hang=True), Plan(drip_s=1.0)])
async def test_a_silent_or_dripping_server_ends_at_the_deadline(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one request; the next try gets its answer."""
    async with backend_at(check_timeout_s=0.2, import_timeout_s=0.1) as (backend, server):
        monkeypatch.setattr(kimina_http, "_SERVER_WAIT_S", 0.0)
        monkeypatch.setattr(kimina_http, "_TRANSFER_S", 0.0)
        server.plans = [plan]
        assert (await _soon(backend.run(REQUEST))).messages == []
        assert backend.statistics()["restarts"] >= 1


@pytest.mark.parametrize(("old", "times"), [(False, 1), (True, 2)])
async def test_a_timeout_of_the_proof_is_believed(old: bool, times: int) -> None:
    """At once, or the second time where a slow import looks the same."""
    async with backend_at(old) as (backend, server):
        before = len(server.requests)
        with pytest.raises(CheckTimeout):
            await backend.run(LeanRequest(IMPORTS, "theorem foo : True := fake_hang"))
        assert len(server.requests) - before == times


async def test_an_error_in_the_header_is_not_the_models() -> None:
    """It stands above the model's text."""
    async with backend_at() as (backend, _):
        with pytest.raises(VerifierError, match="the Lean header was rejected"):
            await backend.run(LeanRequest("import Mathlib\nopen fake_error", "theorem foo : True := trivial"))


async def test_answers_on_other_lines_are_not_divided() -> None:
    """A server that numbers lines in an unknown way cannot put an answer into the wrong half."""

    def moved(answer: dict[str, Any]) -> None:
        for message in answer["results"][0]["response"]["messages"]:
            message["pos"]["line"] -= 1

    async with verifier_at(header=IMPORTS) as (verifier, server):
        server.plans = [Plan(edit=moved)]
        verdict = await verifier.check(proof("exact Or.inl hp"), STATEMENT)
        assert (verdict.kind, verdict.reason) == (
            "infrastructure",
            "the Kimina server answers on other lines than those that ask",
        )


async def test_line_ends_that_only_the_server_sees_are_not_sent() -> None:
    """They would move every line after them."""
    async with backend_at() as (backend, server):
        before = len(server.requests)
        with pytest.raises(VerifierError, match="line ends"):
            await backend.run(LeanRequest(IMPORTS, "-- one\u2028two\ntheorem foo : True := trivial"))
        assert len(server.requests) == before


async def test_no_more_checks_than_workers_and_a_cancelled_one_frees_its_place() -> None:
    """The server sees the disconnect; the next caller goes on."""
    async with backend_at(workers=2, queue_timeout_s=10.0) as (backend, server):
        server.plans = [Plan(hang=True)] * 2
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(backend.run, REQUEST)
                while server.most_in_flight < 2:  # noqa: ASYNC110  nothing tells of it
                    await anyio.sleep(0.005)
                await anyio.sleep(0.05)  # a third one would come now
                group.cancel_scope.cancel()
        assert server.most_in_flight == 2
        statistics = backend.statistics()
        assert (statistics["busy"], statistics["waiting"]) == (0, 0)
        await _soon(backend.run(REQUEST))


async def test_a_restarted_server_is_found_again() -> None:
    """Connections are refused for a while; nothing is lost."""
    async with serve_kimina() as first:
        port = int(first.url.rpartition(":")[2])
        config = fake_config(backend="kimina", url=first.url, workers=4, queue_timeout_s=10.0)
        stack = open_kimina(config)
        backend = await stack.__aenter__()
    answered = anyio.Event()

    async def check() -> None:
        await backend.run(REQUEST)
        answered.set()

    async with anyio.create_task_group() as group:
        group.start_soon(check)
        await anyio.sleep(0.05)
        assert not answered.is_set()
        async with serve_kimina(port=port):
            await answered.wait()
    await stack.__aexit__(None, None, None)
    assert backend.statistics()["restarts"] >= 1


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key goes to verifier.url only."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with backend_at() as (backend, _):
        assert (await backend.run(REQUEST)).messages == []


async def test_a_server_that_is_not_there_ends_the_preflight(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key and the address in the message."""
    monkeypatch.setattr(kimina, "_PATIENCE_AT_START_S", 0.1)
    config = fake_config(backend="kimina", command=[], url="http://127.0.0.1:9")
    with pytest.raises(PreflightError, match=r"verifier\.url = 'http://127\.0\.0\.1:9'"):
        async with open_verifier(config, output_chars=500):
            pass
