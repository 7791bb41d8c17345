"""`launch/bench.py step`: forward and backward pass of our model beside those of others, of the same shape.

The sides take turns in one process; each is a model of base width with random weights. What a side needs of memory is
measured in a process of its own. The share of the peak is of what large matrix products reach here, in the same dtype
and with the same threads; the work counted is that of our model.
"""

import argparse
import math
import multiprocessing
import os
import statistics
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from bench_models import SIDES, VOCABULARY, Work

from data_prep.command import positive_int
from deberta_scale.config import ModelConfig
from deberta_scale.model.sizes import training_flops_per_sequence
from deberta_scale.train import allocator
from deberta_scale.train.metrics import measure_matmul_flops

SUMMARY = "Forward and backward pass of our model beside those of transformers, of the same shape."
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--whole", action="store_true", help="with decoder, head and loss, not the encoder alone")
    parser.add_argument("--length", type=positive_int, nargs="+", default=[512], metavar="L", help="one or more")
    parser.add_argument("--tokens", type=positive_int, default=4096, help="of a step (default: 4096)")
    parser.add_argument("--layers", type=positive_int, default=2, help="of base width (default: 2)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--dropout", type=float, default=0.0, metavar="P", help="everywhere (default: 0)")
    parser.add_argument("--threads", type=positive_int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--memory", choices=("reused", "default"), default="reused", help="as training sets it, or as glibc does"
    )
    parser.add_argument("--turns", type=positive_int, default=5, help="of each side; the median counts (default: 5)")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises ValueError when a length does not divide the tokens, or a package is missing."""
    if unfit := [length for length in arguments.length if arguments.tokens % length]:
        raise ValueError(f"--tokens {arguments.tokens} is not a multiple of --length {unfit[0]}; give one that is")
    if find_spec("transformers") is None:
        raise ValueError(
            "the others come from transformers, which is not installed; pip install 'deberta-scale[peers]'"
        )
    torch.set_num_threads(arguments.threads)
    if arguments.memory == "reused":
        allocator.keep_freed_memory()
    peak = measure_matmul_flops(torch.device("cpu"), DTYPES[arguments.dtype])
    rows = [row for length in arguments.length for row in _rows(arguments, _work(arguments, length), peak)]
    settings = {key: getattr(arguments, key) for key in ("layers", "dtype", "dropout", "threads", "memory", "turns")}
    return {"peak_flops": peak, "torch": torch.__version__, "whole": arguments.whole, **settings, "rows": rows}


def _work(arguments: argparse.Namespace, length: int) -> Work:
    rows, dtype = arguments.tokens // length, DTYPES[arguments.dtype]
    return Work(rows, length, arguments.layers, dtype, arguments.dropout, arguments.whole)


def _rows(arguments: argparse.Namespace, work: Work, peak: float) -> list[dict[str, Any]]:
    names = [name for name in SIDES if name == "ours" or _can(name, work)]
    steps = {name: SIDES[name](work) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(arguments.turns + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first one also pays for what is done once
                seconds[name].append(time.perf_counter() - start)
    del steps
    flops = _flops(work)
    return [
        {
            "name": name,
            "length": work.length,
            "rows": work.rows,
            "milliseconds": 1e3 * statistics.median(seconds[name]),
            "fastest": 1e3 * min(seconds[name]),
            "slowest": 1e3 * max(seconds[name]),
            "tokens_per_second": work.tokens / statistics.median(seconds[name]),
            "share_of_peak": flops / statistics.median(seconds[name]) / peak if name == "ours" else None,
            "peak_mib": _peak_mib(name, work, arguments.threads),
        }
        for name in names
    ]


def _can(name: str, work: Work) -> bool:
    return not (name.startswith("BERT") and work.length > 512)


def _flops(work: Work) -> float:
    model = ModelConfig(vocab_size=VOCABULARY, num_hidden_layers=work.layers, max_position_embeddings=work.length)
    if work.whole:
        return work.rows * training_flops_per_sequence(model, work.length, 0.15, work.rows)
    one_more = model.model_copy(update={"num_hidden_layers": work.layers + 1})
    few, more = (work.rows * training_flops_per_sequence(m, work.length, 0.0, work.rows) for m in (model, one_more))
    return work.layers * (more - few)


def _peak_mib(name: str, work: Work, threads: int) -> float:
    """What a step adds to the resident memory of a process, at most, beside the model."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(name, work, threads, sender))
    process.start()
    sender.close()
    try:
        found: float = receiver.recv()
    except EOFError:
        found = math.nan
    process.join()
    return found


def _measure_memory(name: str, work: Work, threads: int, sender: Any) -> None:
    torch.set_num_threads(threads)
    allocator.return_freed_memory()
    step = SIDES[name](work)
    step()  # libraries are loaded, kernels built; gradients exist
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
    step()
    sender.send((_status("VmHWM") - before) / 2**10)


def _status(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def as_text(result: dict[str, Any]) -> str:
    what = "decoder, head and loss included" if result["whole"] else "encoder alone"
    lines = [
        f"forward and backward, {what}: {result['layers']} layers of base width, {result['dtype']}, dropout"
        f" {result['dropout']:g}, {result['threads']} thread(s), memory {result['memory']}; torch {result['torch']}",
        f"matrix products reach {result['peak_flops'] / 1e12:.2f} TFLOP/s; {result['turns']} turns, medians",
        "",
        f"  {'':<34}{'length':>7}{'ms':>9}{'fastest':>9}{'slowest':>9}{'tokens/s':>10}{'peak MiB':>10}  ours is",
    ]
    ours = {row["length"]: row for row in result["rows"] if row["name"] == "ours"}
    for row in result["rows"]:
        mine = ours[row["length"]]
        told = (
            f"at {100 * row['share_of_peak']:.0f} % of the peak"
            if row is mine
            else f"{row['milliseconds'] / mine['milliseconds']:.2f} times as fast, with"
            f" {mine['peak_mib'] / row['peak_mib']:.2f} of the memory"
        )
        lines.append(
            f"  {row['name']:<34}{row['length']:>7}{row['milliseconds']:>9.1f}{row['fastest']:>9.1f}"
            f"{row['slowest']:>9.1f}{row['tokens_per_second']:>10,.0f}{row['peak_mib']:>10,.0f}  {told}"
        )
    return "\n".join(lines)
