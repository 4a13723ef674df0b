"""`bin/fd-serve`: what it starts vLLM with, and who may talk to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fd_async.config.load import load_config
from fd_async.config.schema import RunConfig
from fd_async.policy.serve import main, vllm_arguments
from fd_async.policy.servers.guard import KEY_VARIABLE, Guard


def write(folder: Path, policy: str = "") -> Path:
    """Write a small configuration."""
    file = folder / "run.toml"
    file.write_text(
        f'[model]\npath = "a/b"\n[data]\ntrain = "t"\n[feedback]\ntype = "lean_output"\n[policy]\n{policy}\n'
    )
    return file


def read(folder: Path, policy: str = "") -> RunConfig:
    return load_config(write(folder, policy), check_files=False)


def test_a_server_gets_what_pushes_and_token_ids_need(tmp_path: Path) -> None:
    """The routes, the extension, log-probs after temperature, figures; nothing that the model folder chooses."""
    words = vllm_arguments(read(tmp_path, "max_model_len = 10240"), "127.0.0.1", 8001, guarded=False)
    text = " ".join(words)
    assert words[0] == "a/b"
    for part in (
        "--enable-scale-out",
        "--worker-extension-cls fd_async.policy.transfer.WorkerExtension",
        "--logprobs-mode processed_logprobs",
        "--generation-config vllm",
        "--skip-tokenizer-init",
        "--max-model-len 10240",
        "--port 8001",
        "--disable-uvicorn-access-log",
    ):
        assert part in text, part
    assert "--disable-log-stats" not in text
    assert "--middleware" not in text
    guarded = vllm_arguments(read(tmp_path), "127.0.0.1", 8001, guarded=True)
    assert "fd_async.policy.servers.guard.Guard" in guarded


def test_a_server_of_a_run_that_pushes_by_nccl_elsewhere_starts(tmp_path: Path) -> None:
    """On several nodes an overlay of the run alone changes `policy.push`; no server takes weights by NCCL."""
    config = read(tmp_path)
    policy = replace(config.policy, gpus=[0], push="nccl")
    words = vllm_arguments(replace(config, policy=policy), "127.0.0.1", 8001, guarded=False)
    assert "--weight-transfer-config" not in words
    assert words[words.index("--gdn-prefill-backend") + 1] == "triton"


def test_a_server_that_others_can_reach_wants_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its routes change weights and call into the workers; vLLM is not even started."""
    file = write(tmp_path)
    assert main(["--config", str(file), "--host", "0.0.0.0"]) == 3
    assert "policy.servers_key_env" in capsys.readouterr().err
    monkeypatch.delenv("FD_TEST_KEY", raising=False)
    file = write(tmp_path, 'servers_key_env = "FD_TEST_KEY"')
    assert main(["--config", str(file)]) == 2
    assert "FD_TEST_KEY, which is not set" in capsys.readouterr().err
    assert main(["--config", str(tmp_path / "none.toml")]) == 2


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "given", "status"),
    [
        ("/collective_rpc", "Bearer secret", 200),
        ("/collective_rpc", "Bearer Secret", 401),
        ("/collective_rpc", "secret", 401),
        ("/collective_rpc", "", 401),
        ("/metrics", "", 401),
        ("/health", "", 200),
        ("/health/../collective_rpc", "", 401),
    ],
)
async def test_the_guard_lets_through_who_shows_the_key(
    monkeypatch: pytest.MonkeyPatch, path: str, given: str, status: int
) -> None:
    """Only the question whether the server is alive is free."""
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"authorization", given.encode())] if given else []
    await Guard(app)({"type": "http", "path": path, "headers": headers}, None, send)
    assert sent[0]["status"] == status


@pytest.mark.parametrize("own", [["--host", "0.0.0.0"], ["--host=0.0.0.0"], ["--hos", "::"], ["--config=a.yaml"]])
def test_what_goes_to_vllm_cannot_open_a_server_behind_the_guard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own: list[str]
) -> None:
    """The later --host would win, and no key would be asked for."""
    assert main(["--config", str(write(tmp_path)), "--", *own]) == 2
    assert f"{own[0]} stands after --" in capsys.readouterr().err
