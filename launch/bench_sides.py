"""What `launch/bench.py step`, `attention` and `head` share: sides that take turns, in time and in memory.

A side is a function of the work, a picklable description of it, that gives a step: forward and backward pass. What
sides need of memory is measured in another process, where memory goes back to the system at once.
"""

import argparse
import contextlib
import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from data_prep.command import positive_int
from deberta_scale.train import allocator
from deberta_scale.train.metrics import measure_matmul_flops

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
OURS = "ours"
"""Name of the first side, that the others are compared with."""

Step = Callable[[], None]
"""Forward and backward pass; gradients stay until the next."""


@dataclass(frozen=True)
class Measured:
    """One side at one shape."""

    name: str
    seconds: list[float]
    """By turn."""
    peak_mib: float | None
    """None where memory did not suffice to measure it."""
    tokens: int
    shape: dict[str, int]

    def row(self) -> dict[str, Any]:
        median = statistics.median(self.seconds)
        return {
            "name": self.name,
            **self.shape,
            "milliseconds": 1e3 * median,
            "fastest": 1e3 * min(self.seconds),
            "slowest": 1e3 * max(self.seconds),
            "tokens_per_second": self.tokens / median,
            "peak_mib": self.peak_mib,
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--threads", type=positive_int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--memory", choices=("reused", "default"), default="reused", help="as training sets it, or as glibc does"
    )
    parser.add_argument("--turns", type=positive_int, default=5, help="of each side; the median counts (default: 5)")


def probability(text: str) -> float:
    """An argparse type."""
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to below 1")
    return value


def add_shape_options(parser: argparse.ArgumentParser, lengths: list[int]) -> None:
    parser.add_argument("--length", type=positive_int, nargs="+", default=lengths, metavar="L", help="one or more")
    parser.add_argument("--tokens", type=positive_int, default=4096, help="of a step (default: 4096)")


def check_shapes(arguments: argparse.Namespace) -> None:
    """Raises ValueError when a length does not divide the tokens."""
    if unfit := [length for length in arguments.length if arguments.tokens % length]:
        raise ValueError(f"--tokens {arguments.tokens} is not a multiple of --length {unfit[0]}; give one that is")


def add_plot_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the cost of a token against the length")


def prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Set threads and memory; returns the facts of the machine. Raises ValueError when a package is missing."""
    if find_spec("transformers") is None:
        raise ValueError(
            "the others come from transformers, which is not installed; pip install 'deberta-scale[peers]'"
        )
    torch.set_num_threads(arguments.threads)
    if arguments.memory == "reused":
        allocator.keep_freed_memory()
    peak = measure_matmul_flops(torch.device("cpu"), DTYPES[arguments.dtype])
    settings = {key: getattr(arguments, key) for key in ("dtype", "threads", "memory", "turns")}
    return {"peak_flops": peak, "torch": torch.__version__, **settings}


def measure(
    sides: Mapping[str, Callable[[Any], Step]], work: Any, arguments: argparse.Namespace, shape: dict[str, int]
) -> list[Measured]:
    """Time and memory of all sides at one shape; `work.tokens` is what a step reads."""
    steps = {name: build(work) for name, build in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(arguments.turns + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first one also pays for what is done once
                seconds[name].append(time.perf_counter() - start)
    del steps
    peaks = _peaks_mib(sides, work, arguments.threads)
    return [Measured(name, seconds[name], peaks.get(name), work.tokens, shape) for name in sides]


def _peaks_mib(sides: Mapping[str, Callable[[Any], Step]], work: Any, threads: int) -> dict[str, float]:
    """What a step of each side adds to the resident memory of a process, at most. Where memory does not suffice for
    one, it and those after it are left out."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(dict(sides), work, threads, sender))
    process.start()
    sender.close()
    found: dict[str, float] = {}
    with contextlib.suppress(EOFError):
        while len(found) < len(sides):
            name, peak = receiver.recv()
            found[name] = peak
    process.join()
    return found


def _measure_memory(sides: Mapping[str, Callable[[Any], Step]], work: Any, threads: int, sender: Any) -> None:
    torch.set_num_threads(threads)
    allocator.return_freed_memory()
    for name, build in sides.items():
        step = build(work)
        step()  # libraries are loaded, kernels built; gradients exist
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
        step()
        sender.send((name, (_status("VmHWM") - before) / 2**10))
        del step
        gc.collect()


def _status(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def check_plot(path: Path | None) -> None:
    """Before anything is measured. Raises ValueError when a plot cannot be drawn or written."""
    if path is None:
        return
    if find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib, which is not installed; pip install 'deberta-scale[plots]'")
    if path.suffix not in (".png", ".svg", ".pdf") or not path.parent.is_dir():
        raise ValueError(f"--plot {path}: give a .png, .svg or .pdf file in a directory that exists")


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the time of 1,000 tokens against the length of a row, a line for each side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["name"] for row in rows):
        points = [(row["length"], 1e6 / row["tokens_per_second"]) for row in rows if row["name"] == name]
        axes.plot(*zip(*points, strict=True), marker="o", linewidth=3 if name == OURS else 1.5, label=name)
    lengths = sorted({row["length"] for row in rows})
    axes.set(xscale="log", yscale="log", xlabel="tokens of a row", ylabel="ms for 1,000 tokens", title=title)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def settings_line(result: dict[str, Any]) -> str:
    return (
        f"{result['dtype']}, {result['threads']} thread(s), memory {result['memory']}; torch {result['torch']}; large"
        f" matrix products reach {result['peak_flops'] / 1e12:.2f} TFLOP/s; {result['turns']} turns, medians"
    )


def table(rows: list[dict[str, Any]], key: str) -> list[str]:
    """A line for each row; the other sides beside ours of the same `key`, the part of the shape that varies."""
    head = f"  {'':<34}{key:>10}{'ms':>9}{'fastest':>9}{'slowest':>9}{'tokens/s':>11}{'peak MiB':>10}  ours is"
    ours = {row[key]: row for row in rows if row["name"] == OURS}
    return [head, *(_line(row, ours[row[key]], key) for row in rows)]


def _line(row: dict[str, Any], ours: dict[str, Any], key: str) -> str:
    told = f"{row['milliseconds'] / ours['milliseconds']:.2f} times as fast"
    if row["peak_mib"] and ours["peak_mib"]:
        told += f", with {ours['peak_mib'] / row['peak_mib']:.2f} of the memory"
    if row is ours:
        told = f"at {100 * row['share_of_peak']:.0f} % of the peak" if "share_of_peak" in row else ""
    memory = "-" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}"
    return (
        f"  {row['name']:<34}{row[key]:>10,}{row['milliseconds']:>9.1f}{row['fastest']:>9.1f}"
        f"{row['slowest']:>9.1f}{row['tokens_per_second']:>11,.0f}{memory:>10}  {told}".rstrip()
    )
