"""The /metrics endpoint, scraped over HTTP and parsed as Prometheus does."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fd_async.errors import PreflightError
from fd_async.telemetry.metrics import FAMILIES, METRICS
from fd_async.telemetry.prometheus import Endpoint, metric_name

SNAPSHOT = {
    "stages": {"generating": 3, "tools": 0},
    "waits": [{"stage": "generating", "seconds": 12.5, "count": 3, "oldest": "a", "waits_for": "vLLM"}],
    "engine": {"running": 3.0, "kv_usage": 0.25},
    "dropped": {"infrastructure": 2},
    "outstanding": 5,
    "capacity": 1,
    "tokens_per_s": 1234.5,
    "elapsed_s": 60.0,
    "lag_ms": 4.0,
    "phase": "training",
}


@pytest.fixture(scope="module")
def served() -> Iterator[Endpoint]:
    endpoint = Endpoint("demo", "127.0.0.1", 0)
    yield endpoint
    endpoint.close()


@pytest.fixture
def endpoint(served: Endpoint) -> Endpoint:
    served._row, served._snapshot = {}, {}
    return served


def scrape(endpoint: Endpoint) -> dict[str, float]:
    """Return every sample as name{labels} -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        assert family.type != "unknown", family.name
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in samples
            samples[name] = sample.value
    return samples


def test_a_scrape_before_the_first_step_is_answered(endpoint: Endpoint) -> None:
    """There is nothing to tell but the name."""
    assert scrape(endpoint) == {"fd_async_run_info{run=demo}": 1.0}


def test_a_scrape_has_the_last_row_and_the_present_state_in_base_units(endpoint: Endpoint) -> None:
    """Columns without data are absent; those of an earlier row stay."""
    endpoint.row({"step": 4, "eval/minif2f/pass@8": 0.5, "eval/minif2f/pass@1": 0.25, "eval/minif2f/statements": 244})
    endpoint.row({"step": 5, "loss": 1.5, "lr": None, "tokens/generated": 900, "time/step_s": 2.5})
    endpoint.row({"loop/lag_p99_ms": 20.0, "idle/engine": 0.1, "feedback/usd": 7.5, "disk/ledger_mib": 2.0})
    endpoint.snapshot(SNAPSHOT)
    assert scrape(endpoint) == {
        "fd_async_run_info{run=demo}": 1.0,
        "fd_async_step": 5.0,
        "fd_async_loss_nats_per_token": 1.5,
        "fd_async_tokens_generated_total": 900.0,
        "fd_async_time_step_seconds": 2.5,
        "fd_async_loop_lag_p99_seconds": 0.02,
        "fd_async_idle_engine_ratio": 0.1,
        "fd_async_feedback_usd_total": 7.5,
        "fd_async_disk_ledger_bytes": 2.0 * 2**20,
        "fd_async_eval_pass_ratio{k=8,suite=minif2f}": 0.5,
        "fd_async_eval_pass_ratio{k=1,suite=minif2f}": 0.25,
        "fd_async_eval_statements{suite=minif2f}": 244.0,
        "fd_async_stage_items{stage=generating}": 3.0,
        "fd_async_stage_items{stage=tools}": 0.0,
        "fd_async_stage_oldest_seconds{stage=generating}": 12.5,
        "fd_async_engine_state{of=running}": 3.0,
        "fd_async_engine_state{of=kv_usage}": 0.25,
        "fd_async_attempts_dropped_total{cause=infrastructure}": 2.0,
        "fd_async_state_outstanding_groups": 5.0,
        "fd_async_state_capacity_groups": 1.0,
        "fd_async_state_tokens_per_second": 1234.5,
        "fd_async_state_elapsed_seconds": 60.0,
        "fd_async_state_lag_seconds": 0.004,
    }


def test_every_column_has_a_name_of_its_own(endpoint: Endpoint) -> None:
    """All columns in one scrape, none twice."""
    names = {metric_name(metric.key)[0] for metric in METRICS}
    assert len(names) == len(METRICS)
    evals = [metric.key.replace("SUITE", "a").replace("@K", "@1") for metric in FAMILIES]
    endpoint.row(dict.fromkeys([*(metric.key for metric in METRICS), *evals], 1.0))
    assert len(scrape(endpoint)) == len(METRICS) + len(FAMILIES) + 1


def test_a_port_that_is_taken_is_one_line_that_names_the_key() -> None:
    """Nothing is left behind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PreflightError, match=rf"telemetry\.prometheus_port = {port}: .*in use") as error:
            Endpoint("demo", "127.0.0.1", port)
    assert "\n" not in str(error.value)


def test_an_address_that_does_not_exist_is_one_line_too() -> None:
    """The name cannot be resolved."""
    with pytest.raises(PreflightError, match=r"telemetry\.prometheus_host = 'no\.such\.host\.invalid'"):
        Endpoint("demo", "no.such.host.invalid", 0)


def test_a_slow_reader_keeps_nobody_else_waiting(endpoint: Endpoint) -> None:
    """Each scrape has a thread of its own."""
    with socket.create_connection(("127.0.0.1", endpoint.port)):
        assert scrape(endpoint)
