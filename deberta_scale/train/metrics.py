"""What a run says of itself: sums kept on the device, then log.jsonl, TensorBoard and one line for people."""

import dataclasses
import json
import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from deberta_scale.data.loader import DIGEST_MODULUS
from deberta_scale.durable import write_durably
from deberta_scale.train.distributed import sum_over_ranks

_HALF_DIGEST_BITS = 31


@dataclass(frozen=True)
class Interval:
    """Sums over all ranks of some steps."""

    loss_sum: float
    """Nats."""
    predicted_tokens: int
    correct: int
    useful_tokens: int
    """Without padding."""
    read_tokens: int
    """With padding."""
    digest: int
    """Of the masked samples, whatever the order and the rank that read them."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy of the predicted tokens, in nats."""
        return self.loss_sum / max(1, self.predicted_tokens)

    @property
    def accuracy(self) -> float:
        return self.correct / max(1, self.predicted_tokens)

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))


def sum_of(intervals: Collection[Interval]) -> Interval:
    """One interval of several."""
    sums = {field.name: sum(getattr(i, field.name) for i in intervals) for field in dataclasses.fields(Interval)}
    return Interval(**sums | {"digest": sums["digest"] % DIGEST_MODULUS})


class Totals:
    """Sums of an interval on one rank. They stay on the device until `read`, the only synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset()

    def _reset(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        self._useful_tokens = self._read_tokens = self._digest = 0

    def add(self, loss_sum: torch.Tensor, predicted: torch.Tensor, correct: torch.Tensor) -> None:
        """Add what the model returned for one micro-batch."""
        self._sums += torch.stack([loss_sum.detach().double(), predicted.double(), correct.double()])

    def add_read(self, useful_tokens: int, read_tokens: int, digest: int) -> None:
        """Add what the loader read for one step."""
        self._useful_tokens += useful_tokens
        self._read_tokens += read_tokens
        self._digest = (self._digest + digest) % DIGEST_MODULUS

    def read(self) -> Interval:
        """Sum over ranks, bring to the host, and start again from zero."""
        halves = [self._digest % 2**_HALF_DIGEST_BITS, self._digest >> _HALF_DIGEST_BITS]
        counts = [self._useful_tokens, self._read_tokens]
        loss_sum, *whole = sum_over_ranks([*self._sums.tolist(), *counts, *halves])
        predicted, correct, useful, read, low, high = (int(value) for value in whole)
        self._reset()
        return Interval(
            loss_sum, predicted, correct, useful, read, (low + (high << _HALF_DIGEST_BITS)) % DIGEST_MODULUS
        )


def measure_matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product on this device with this process's threads: the 100 % of the logged MFU."""
    size = 4096 if device.type == "cuda" else 1024
    left, right = torch.ones(size, size, dtype=dtype, device=device), torch.ones(size, size, dtype=dtype, device=device)
    best_seconds = math.inf
    for _ in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best_seconds = min(best_seconds, time.perf_counter() - start)
    return 2 * size**3 / best_seconds


class RunLog:
    """Writes the run's records: log.jsonl, events.jsonl, TensorBoard, standard output. Silent on other ranks than 0."""

    def __init__(self, run_dir: Path, enabled: bool, first_step: int) -> None:
        """`first_step`: steps done already. What an interrupted run logged beyond them is about to happen again, and
        is dropped, so that the log holds each step once."""
        self._enabled = enabled
        if enabled:
            path = run_dir / "log.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            write_durably(path, "".join(f"{line}\n" for line in lines if _step_of(line) <= first_step))
            self._log = path.open("a", buffering=1)
            self._events = (run_dir / "events.jsonl").open("a", buffering=1)
            self._board = SummaryWriter(run_dir / "tensorboard", purge_step=first_step + 1)

    def scalars(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One record of kind `train` or `evaluation`: a line of log.jsonl and TensorBoard's scalars."""
        if not self._enabled:
            return
        self._log.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def event(self, what: str, **details: Any) -> None:
        """Something that happened once: start, resume, save, stop. A line of events.jsonl."""
        if self._enabled:
            self._events.write(
                json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": what, **details}) + "\n"
            )

    def say(self, message: str) -> None:
        """A line for people."""
        if self._enabled:
            print(message, flush=True)

    def close(self) -> None:
        if self._enabled:
            self._log.close()
            self._events.close()
            self._board.close()


def _step_of(line: str) -> float:
    """Step of a log line; a line cut by a crash counts as never."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf


def progress_line(step: int, steps: int, values: dict[str, Any], seconds_left: float) -> str:
    """The line printed each log interval."""
    norm = values.get("gradient_norm")
    return (
        f"step {step:>{len(str(steps))}}/{steps}  loss {values['loss']:.4f}  accuracy {values['accuracy']:.3f}"
        f"  lr {values['learning_rate']:.2e}"
        + (f"  gradient {norm:.2f}" if norm is not None else "")
        + f"  tokens/s {values['read_tokens_per_second']:,.0f} read, {values['useful_tokens_per_second']:,.0f} useful,"
        f" {values['predicted_tokens_per_second']:,.0f} predicted  MFU {100 * values['mfu']:.0f} %"
        f"  ETA {duration(seconds_left)}"
    )


def duration(seconds: float) -> str:
    """`1h02m`, `3m20s`, `12s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
