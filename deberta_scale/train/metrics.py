"""What a run says of itself: sums kept on the device, then log.jsonl, TensorBoard and one line for people."""

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch.utils.tensorboard import SummaryWriter

from deberta_scale.data.loader import DIGEST_MODULUS
from deberta_scale.durable import write_durably
from deberta_scale.train.distributed import sum_over_ranks

EVENTS = "events.jsonl"
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

    @property
    def loss_sum(self) -> torch.Tensor:
        """Of this rank so far, on the device."""
        return self._sums[0]

    def include(self, other: "Totals") -> None:
        """Add what another one was told by `add`."""
        self._sums += other._sums

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


MATMUL_SECONDS = 0.3
"""Long enough that what disturbs a processor for a moment does not count."""


def measure_matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product on this device with this process's threads: the 100 % of the logged MFU."""
    size = 4096 if device.type == "cuda" else 1024
    left, right = torch.ones(size, size, dtype=dtype, device=device), torch.ones(size, size, dtype=dtype, device=device)
    best_seconds = math.inf
    end = time.perf_counter() + MATMUL_SECONDS
    while math.isinf(best_seconds) or time.perf_counter() < end:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best_seconds = min(best_seconds, time.perf_counter() - start)
    return 2 * size**3 / best_seconds


class RunLog:
    """Writes the run's records: log.jsonl, events.jsonl, TensorBoard, standard output. Silent on other ranks than 0.

    A record that cannot be written, on a full disk for instance, is printed with the cause; the run goes on.
    """

    def __init__(self, run_dir: Path, enabled: bool, first_step: int) -> None:
        """`first_step`: steps done already. What an interrupted run logged beyond them is about to happen again, and
        is dropped, so that the log holds each step once. Raises OSError when the files cannot be opened."""
        self._enabled = enabled
        self._evaluated: set[int] = set()
        self._last_loss: float | None = None
        if enabled:
            self._run_dir = run_dir
            kept = self._open_after(first_step)
            records = [json.loads(line) for line in kept]
            self._evaluated = {record["step"] for record in records if record.get("kind") == "evaluation"}
            losses = [record["loss"] for record in records if record.get("kind") == "train"]
            self._last_loss = losses[-1] if losses else None
            self._events = _open_records(run_dir / EVENTS)

    def _open_after(self, step: int) -> list[str]:
        """Drop what the log holds beyond `step`; returns the lines that stay."""
        path = self._run_dir / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_durably(path, "".join(f"{line}\n" for line in kept))
        self._log = path.open("a", buffering=1)
        self._board = SummaryWriter(self._run_dir / "tensorboard", purge_step=step + 1)
        return kept

    def rewind(self, step: int) -> None:
        """Go on from after `step`: what was logged beyond it is about to happen again, and is dropped."""
        if self._enabled:
            self._log.close()
            self._board.close()
            self._open_after(step)

    def evaluated(self, step: int) -> bool:
        """Whether the log holds an evaluation of `step` from before this start."""
        return step in self._evaluated

    def take_last_loss(self) -> float | None:
        """Of the newest training record from before this start; None when there is none, and from the second call."""
        loss, self._last_loss = self._last_loss, None
        return loss

    def scalars(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One record of kind `train`, `evaluation` or `save`: a line of log.jsonl and TensorBoard's scalars."""
        if not self._enabled:
            return
        line = json.dumps({"kind": kind, "step": step, **values})
        with self._going_on(line):
            self._log.write(line + "\n")
        with self._going_on(f"TensorBoard's {kind} of step {step}"):
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def event(self, what: str, **details: Any) -> None:
        """Something that happened once: start, resume, save, stop. A line of events.jsonl."""
        if self._enabled:
            line = _event(what, **details)
            with self._going_on(line):
                self._events.write(line + "\n")

    def say(self, message: str) -> None:
        """A line for people."""
        if self._enabled:
            print(message, flush=True)

    def close(self) -> None:
        if self._enabled:
            for file in (self._log, self._events, self._board):
                with self._going_on("the last records"):
                    file.close()

    @contextlib.contextmanager
    def _going_on(self, record: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.say(f"not written to the log ({error}): {record}")


def append_event(run_dir: Path, what: str, **details: Any) -> None:
    """As `RunLog.event`, before there is a log. Raises OSError."""
    with _open_records(run_dir / EVENTS) as file:
        file.write(_event(what, **details) + "\n")


def _event(what: str, **details: Any) -> str:
    return json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": what, **details})


def _open_records(path: Path) -> TextIO:
    """To append lines. The last one that is there goes if it was cut by a crash or a full disk: the next would be
    written behind it, and neither could be read."""
    if path.is_file():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
    return path.open("a", buffering=1)


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
