"""Combinations that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest

from fd_async.config.load import load_config
from fd_async.errors import ConfigError

REFUSED = {
    "rollout.max_response_tokens=9000": "do not fit policy.max_model_len",
    "learner.micro_batch_tokens=4096": "must hold it",
    "policy.max_num_batched_tokens=8": "policy.max_num_seqs",
    "algorithm.type=grpo": "at least 2",
    "algorithm.top_k=5000": "at most 4096",
    "feedback.type=anthropic": "needs a model",
    "feedback.base_url=localhost": "http://",
    "learner.ranks=500": "more ranks",
    "learner.betas=[0.9, 1.0]": "< 1",
    "policy.gpus=[0]": "for neither",
    "policy.push=nccl": "needs policy.gpus",
    "eval.k=[0]": "each >= 1",
    "eval.k=[1, 8]": "at least 8 attempts",
    "policy.engine=servers": "must list at least one address",
    'verifier.sandbox_read=["libraries"]': "absolute paths",
    "run.stall_warn_s=9999": "run.stall_abort_s",
    "run.name=a/b": "plain folder name",
    "run.name=..": "plain folder name",
    "feedback.request_timeout_s=999": "feedback.deadline_s",
    "fallback.api_key_env=sk-123": "NAME of an environment variable",
    'data.eval=["a/x.jsonl", "b/x.jsonl"]': "same stem",
    "data.train=": "set data.train, or data.source",
    "data.train=hub:a/b": "expected hub:OWNER/NAME@COMMIT",
    "data.train=t.jsonl#half": "is unknown; write #train, #test or #COLUMN=VALUE",
    "data.source=t.jsonl#test": "takes a whole source",
    'data.columns=["theorem=statement"]': "OURS one of name",
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small correct file."""
    file = tmp_path / "base.toml"
    file.write_text('[model]\npath = "a/b"\n[data]\ntrain = "t.jsonl"\n[feedback]\ntype = "constant"\n')
    return file


@pytest.mark.parametrize(("given", "said"), REFUSED.items())
def test_a_bad_combination_is_refused_with_what_to_change(base: Path, given: str, said: str) -> None:
    """Each rule speaks about the key that was set."""
    load_config(base, check_files=False)
    with pytest.raises(ConfigError) as caught:
        load_config(base, [], [given], check_files=False)
    (line,) = str(caught.value).splitlines()
    assert said in line
    assert line.startswith(f"--set: {given.split('=')[0]} = ")


SERVERS = ["policy.engine=servers", 'policy.servers=["http://127.0.0.1:8000"]']
GPUS = ["policy.gpus=[0]", "learner.gpus=[1]"]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["policy.gpus=[0, 1]", "learner.gpus=[2]"], "2 GPUs for"),
        (["policy.gpus=[0]", "learner.gpus=[0]", "policy.push=nccl"], "one GPU"),
        (["policy.gpus=[0, 0]", "learner.gpus=[2]", "policy.data_parallel_size=2"], "different"),
        (["algorithm.type=grpo", "rollout.samples_per_prompt=2", "algorithm.importance_cap=1.2"], "clip_high = 1.2"),
        (["algorithm.causality_every=5", "algorithm.type=grpo", "rollout.samples_per_prompt=2"], "has a teacher"),
        (["eval.samples=4", "eval.temperature=0"], "the same"),
        (["feedback.type=openai", "feedback.model=m", "feedback.max_usd=1"], "both prices"),
        (["feedback.type=lean_output", "feedback.text=hello"], "constant"),
        (["feedback.outage=fallback"], "fallback.type = .anthropic. needs a model"),
        (["feedback.outage=fallback", "fallback.model=m", "fallback.max_usd=1"], "set fallback.usd_per_million_input"),
        (["feedback.outage=fallback", "fallback.model=m", "fallback.base_url=host"], "http://"),
        (["alarms.action=rollback", "checkpoint.every_steps=0"], "checkpoints to go back to"),
        (["verifier.backend=kimina", "verifier.url=host:1"], "http://"),
        ([*SERVERS, "policy.push=nccl"], "take weights from files"),
        ([*SERVERS, 'policy.servers=["http://node1:8000"]'], "http://node1:8000 is none"),
        ([*SERVERS, 'policy.servers=["http://me:secret@localhost:8000"]'], "nothing else"),
        ([*SERVERS, "policy.data_parallel_size=2"], "one server for each engine"),
        ([*SERVERS, "policy.servers_key_env=sk-123"], "NAME of an environment variable"),
    ],
)
def test_several_keys_may_disagree(base: Path, sets: list[str], said: str) -> None:
    """Rules that need more than one key to break."""
    with pytest.raises(ConfigError, match=said):
        load_config(base, [], sets, check_files=False)


@pytest.mark.parametrize(
    "sets",
    [
        [*GPUS, "policy.push=nccl"],
        SERVERS,
        [*SERVERS, "learner.gpus=[0]"],
        [*SERVERS, 'policy.servers=["http://n:1", "https://m:2/"]', "policy.push=file", "policy.push_dir=/shared"],
        ["algorithm.type=grpo", "rollout.samples_per_prompt=5", "feedback.type=anthropic"],
        ["run.mode=sync"],
        ["rollout.tools=false", "rollout.max_turns=8"],
        ["algorithm.causality_every=10", "algorithm.causality_samples=1"],
        ["feedback.text="],
        ["eval.k=[1, 8]", "eval.samples=8"],
        ["verifier.sandbox=bubblewrap_if_it_works"],
    ],
)
def test_what_works_is_accepted(base: Path, sets: list[str]) -> None:
    """The rules refuse nothing more than they must."""
    load_config(base, [], sets, check_files=False)
