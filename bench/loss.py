"""Memory and time of the distillation loss with its lm_head: teacher top-K, student loss, both gradients.

`rows` has one entry per vocabulary and number of tokens, each measured in processes of its own:

- `peak_extra_share`: peak memory beyond inputs, outputs (targets, hidden gradient) and the head's gradient, as a share
  of one float32 [tokens, vocab]. On CPU the peak of the resident set (reset before the run), so that what kernels
  allocate inside counts; on CUDA the allocator's.
- `time_vs_matmul`: over the four matrix products that cannot be avoided (two forward, two backward), alternating with
  them in the same process.
- `full_logits_*_ratio`: the usual way (log_softmax of all logits under autograd) over this one. Time is each one's
  `time_vs_matmul`, so that the machine's load in their two processes cancels; memory is the extra.
- `trl_*`, `liger_*`: the same for their nearest losses where `trl` or `liger_kernel` is installed, else null and the
  reason in `notes`. TRL's takes a teacher's top-K from elsewhere, so it is given ours, teacher's time included;
  Liger's is a divergence over the whole vocabulary of both heads.

`slopes` has, per vocabulary, the extra memory of another token, and the share this makes at 8,192 tokens: computed
from the rows and the chunk's rule, not measured, unless a row has that many.
"""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.common import emit, parser
from fd_async.algorithms.chunking import chunk_rows
from fd_async.algorithms.distillation import TeacherTargets, student_cross_entropy, teacher_top_k
from fd_async.algorithms.lm_head import Head

TOP_K = 25
GOAL_TOKENS = 8192
ALL = ("ours", "full_logits", "trl", "liger")
QUICK: dict[str, Any] = {"hidden": 1024, "cases": [(98_304, 2048, ("ours", "full_logits"))], "repeats": 1}
# A CPU needs a minute for the products of the longest case: not everything is measured everywhere.
FULL: dict[str, Any] = {
    "hidden": 4096,
    "cases": [
        (151_936, 1024, ALL),
        (151_936, 2048, ("ours", "full_logits")),
        (248_320, 1024, ("ours",)),
        (248_320, 2048, ("ours", "full_logits")),
    ],
    "repeats": 1,
}
CUDA: dict[str, Any] = {
    "hidden": 4096,
    "cases": [(v, t, ALL) for v in (151_936, 248_320) for t in (2048, 8192)],
    "repeats": 5,
}
Step = Callable[["Inputs"], Any]


class Inputs:
    """One random head for teacher and student, and hidden states whose logits are about as sure as a model's."""

    def __init__(self, vocab: int, tokens: int, hidden: int, device: str) -> None:
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        generator = torch.Generator(device).manual_seed(0)

        def matrix(rows: int, size: float) -> Tensor:
            values = torch.empty(rows, hidden, dtype=self.dtype, device=device)
            return values.normal_(0.0, size, generator=generator)

        self.weight_VH = matrix(vocab, 3.0 * hidden**-0.5).requires_grad_()
        self.teacher_TH = matrix(tokens, 1.0)
        self.student_TH = matrix(tokens, 1.0).requires_grad_()
        self.sampled_T = torch.randint(vocab, (tokens,), device=device)

    @property
    def head(self) -> Head:
        return Head(self.weight_VH)

    def forget(self) -> None:
        self.weight_VH.grad = self.student_TH.grad = None


def targets_of(inputs: Inputs) -> TeacherTargets:
    return teacher_top_k(inputs.teacher_TH, inputs.head, inputs.sampled_T, top_k=TOP_K, chunk_tokens=0)


def ours(inputs: Inputs) -> TeacherTargets:
    """Teacher, loss and gradients of this project."""
    targets = targets_of(inputs)
    student_cross_entropy(inputs.student_TH, inputs.head, inputs.sampled_T, targets, chunk_tokens=0).loss.backward()
    return targets


def full_logits(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The usual way: all logits, log_softmax, gather, autograd."""
    with torch.no_grad():
        logp_TK, ids_TK = (inputs.teacher_TH @ inputs.weight_VH.T).float().log_softmax(-1).topk(TOP_K, dim=-1)
    logq_TV = (inputs.student_TH @ inputs.weight_VH.T).float().log_softmax(-1)
    (-(logp_TK.exp() * logq_TV.gather(1, ids_TK)).sum()).backward()
    return logp_TK, ids_TK


def trl(inputs: Inputs) -> TeacherTargets:
    """TRL's chunked lm_head loss of its asynchronous distillation trainer: forward KL on the top-K with a tail."""
    module = importlib.import_module("trl.experimental.async_distillation.async_distillation_trainer")
    targets = targets_of(inputs)
    loss = module._chunked_jsd_loss(
        hidden_valid=inputs.student_TH,
        lm_head_weight=inputs.weight_VH,
        lm_head_bias=None,
        logit_scale=1.0,
        final_logit_softcapping=None,
        target_ids=targets.ids_TK,
        teacher_target_logps=targets.logprobs_TK,
        valid_candidate_mask=torch.ones_like(targets.ids_TK, dtype=torch.bool),
        beta=0.0,
        temperature=1.0,
        add_tail_bucket=True,
        teacher_id_idx=None,
        num_teachers=1,
        chunk_size=module._CHUNKED_LM_HEAD_CHUNK_SIZE,
    )[0]
    loss.backward()
    return targets


def liger(inputs: Inputs) -> None:
    """Liger's fused linear JSD at its forward-KL end, the hard loss weighing nothing; compiled on CUDA only."""
    module = importlib.import_module("liger_kernel.chunked_loss")
    loss = module.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=inputs.weight_VH.is_cuda
    )
    weight_VH = inputs.weight_VH
    loss(inputs.student_TH, weight_VH, inputs.teacher_TH, weight_VH.detach(), inputs.sampled_T).backward()


STEPS: dict[str, Step] = {"ours": ours, "full_logits": full_logits, "trl": trl, "liger": liger}
PACKAGES = {"trl": "trl", "liger": "liger_kernel"}


def four_products(inputs: Inputs) -> None:
    """The products that no implementation can avoid, each at once."""
    with torch.no_grad():
        logits_TV = inputs.teacher_TH @ inputs.weight_VH.T
        torch.mm(inputs.student_TH, inputs.weight_VH.T, out=logits_TV)
        torch.mm(logits_TV, inputs.weight_VH)
        torch.mm(logits_TV.T, inputs.student_TH)


def seconds(step: Step, inputs: Inputs) -> float:
    """Time one run, work queued on the device included."""
    inputs.forget()
    _synchronize(inputs)
    began = time.perf_counter()
    step(inputs)
    _synchronize(inputs)
    return time.perf_counter() - began


def first_run(step: Step, inputs: Inputs) -> tuple[int, float]:
    """Measure one run's peak memory beyond what was there before and what it leaves, and its seconds."""
    inputs.forget()
    gc.collect()
    before = _resident(inputs, peak=False)
    _reset_peak(inputs)
    began = time.perf_counter()
    result = step(inputs)
    _synchronize(inputs)
    took = time.perf_counter() - began
    peak = _resident(inputs, peak=True)
    grads = [inputs.weight_VH.grad, inputs.student_TH.grad]
    left = sum(tensor.numel() * tensor.element_size() for tensor in [*(result or ()), *grads] if tensor is not None)
    return peak - before - left, took


def _synchronize(inputs: Inputs) -> None:
    if inputs.weight_VH.is_cuda:
        torch.cuda.synchronize()


def _reset_peak(inputs: Inputs) -> None:
    if inputs.weight_VH.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _resident(inputs: Inputs, *, peak: bool) -> int:
    if inputs.weight_VH.is_cuda:
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def measure(name: str, vocab: int, tokens: int, hidden: int, repeats: int, device: str) -> dict[str, Any]:
    """Run one way in this process: first a small one, so that code and thread pools are there, then memory, time."""
    step = STEPS[name]
    step(Inputs(TOP_K * 8, 128, hidden, device))
    inputs = Inputs(vocab, tokens, hidden, device)
    extra_bytes, took = first_run(step, inputs)
    times = [(took, seconds(four_products, inputs))]
    times += [(seconds(step, inputs), seconds(four_products, inputs)) for _ in range(repeats - 1)]
    took, matmul = (min(column) for column in zip(*times, strict=True))
    return {"extra_bytes": extra_bytes, "seconds": took, "matmul_seconds": matmul}


def child(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure in a new process; what fails there is a reason, not an error."""
    package = PACKAGES.get(name)
    if package and find_spec(package) is None:
        return {"error": f"{package} is not installed"}
    command = [sys.executable, "-m", "bench.loss", "--measure", json.dumps({"name": name, **settings})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}


def row_of(vocab: int, tokens: int, ways: Sequence[str], hidden: int, repeats: int, device: str) -> dict[str, Any]:
    """Measure several ways at one size."""
    settings = {"vocab": vocab, "tokens": tokens, "hidden": hidden, "repeats": repeats, "device": device}
    found = {name: child(name, settings) if name in ways else {"error": "not run at this size"} for name in STEPS}
    mine, logits_bytes = found["ours"], 4 * vocab * tokens
    if "error" in mine:
        raise SystemExit(f"bench.loss failed at {vocab} x {tokens}: {mine['error']}")
    row: dict[str, Any] = {
        "vocab": vocab,
        "tokens": tokens,
        "hidden": hidden,
        "peak_extra_share": mine["extra_bytes"] / logits_bytes,
        "peak_extra_bytes": mine["extra_bytes"],
        "time_vs_matmul": mine["seconds"] / mine["matmul_seconds"],
        "seconds": mine["seconds"],
        "notes": {name: other["error"] for name, other in found.items() if "error" in other},
    }
    for name in ("full_logits", "trl", "liger"):
        other = found[name]
        known = "error" not in other
        row[f"{name}_time_vs_matmul"] = other["seconds"] / other["matmul_seconds"] if known else None
        row[f"{name}_time_ratio"] = row[f"{name}_time_vs_matmul"] / row["time_vs_matmul"] if known else None
        row[f"{name}_memory_ratio"] = other["extra_bytes"] / mine["extra_bytes"] if known else None
    print(json.dumps(row), flush=True)
    return row


def slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per vocabulary: what a token adds beside the chunk, from the two longest rows, and the share at the goal."""
    found = []
    for vocab in sorted({row["vocab"] for row in rows}):
        points = sorted((row["tokens"], row["peak_extra_bytes"]) for row in rows if row["vocab"] == vocab)[-2:]
        if len(points) == 2:
            (few, small), (many, large) = ((tokens, size - chunk_bytes(tokens, vocab)) for tokens, size in points)
            per_token = (large - small) / (many - few)
            at_goal = large + per_token * (GOAL_TOKENS - many) + chunk_bytes(GOAL_TOKENS, vocab)
            share = at_goal / (4 * vocab * GOAL_TOKENS)
            found.append({"vocab": vocab, "bytes_per_token_beside_chunk": per_token, "computed_share_at_8192": share})
    return found


def chunk_bytes(tokens: int, vocab: int) -> int:
    """Return the size of the buffer of logits."""
    return 4 * vocab * chunk_rows(tokens, 0, vocab)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--measure", type=json.loads, help="one way at one size, as a JSON object; prints one")
    options.add_argument("--tokens", type=int, nargs="*", help="other numbers of tokens")
    given = options.parse_args()
    if given.measure:
        print(json.dumps(measure(**given.measure)))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = QUICK if given.quick else CUDA if device == "cuda" else FULL
    cases = plan["cases"]
    if given.tokens:
        cases = [(vocab, tokens, ALL) for vocab in dict.fromkeys(case[0] for case in cases) for tokens in given.tokens]
    rows = [row_of(*case, plan["hidden"], plan["repeats"], device) for case in cases]
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    emit({"rows": rows, "slopes": slopes(rows), "device": name, "dtype": "bfloat16" if device == "cuda" else "float32"})


if __name__ == "__main__":
    main()
