"""`launch/bench.py step`: forward and backward pass of our model beside those of others, of the same shape.

Each side is a model of base width with random weights. The share of the peak is of what large matrix products reach
here, in the same dtype and with the same threads; the work counted is that of our model. With --trace our step runs
once more under torch's profiler, which makes it a little slower.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bench_models
import bench_sides
import torch
from bench_models import SIDES, VOCABULARY, Work
from bench_sides import DTYPES, OURS, Step

from data_prep.command import positive_int
from deberta_scale.config import ModelConfig
from deberta_scale.model.sizes import training_flops_per_sequence

SUMMARY = "Forward and backward pass of our model beside those of transformers, of the same shape."
OPERATIONS_SHOWN = 25


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--whole", action="store_true", help="with decoder, head and loss, not the encoder alone")
    bench_sides.add_shape_options(parser, lengths=[512])
    parser.add_argument("--layers", type=positive_int, default=2, help="of base width (default: 2)")
    parser.add_argument(
        "--dropout", type=bench_sides.probability, default=0.0, metavar="P", help="everywhere (default: 0)"
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write a Chrome trace of our step, and tell where its time goes"
    )
    parser.add_argument("--official", type=Path, metavar="DIR", help="a checkout of microsoft/DeBERTa, measured too")
    bench_sides.add_options(parser)
    bench_sides.add_plot_option(parser)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises ValueError when a length does not divide the tokens, there are too few layers, a trace is asked for of
    several lengths or into a directory that is not there, a package is missing, or the official code."""
    bench_sides.check_shapes(arguments)
    if arguments.layers < 2:
        raise ValueError(f"--layers {arguments.layers}: our model has 2 or more")
    trace: Path | None = arguments.trace
    if trace is not None and (len(arguments.length) > 1 or not trace.parent.is_dir()):
        raise ValueError(f"--trace {trace}: give one --length, and a file in a directory that exists")
    bench_sides.check_plot(arguments.plot)
    sides = bench_models.sides(arguments.official, arguments.whole)
    facts = bench_sides.prepare(arguments)
    works = [_work(arguments, length) for length in arguments.length]
    rows = [row for work in works for row in _rows(arguments, sides, work, facts["peak_flops"])]
    result = {**facts, "whole": arguments.whole, "layers": arguments.layers, "dropout": arguments.dropout, "rows": rows}
    if arguments.plot is not None:
        bench_sides.plot(result["rows"], arguments.plot, _title(result))
    return result if trace is None else {**result, "operations": _traced(SIDES[OURS](works[0]), trace)}


def _work(arguments: argparse.Namespace, length: int) -> Work:
    rows, dtype = arguments.tokens // length, DTYPES[arguments.dtype]
    return Work(rows, length, arguments.layers, dtype, arguments.dropout, arguments.whole)


def _rows(
    arguments: argparse.Namespace, sides: Mapping[str, Callable[[Work], Step]], work: Work, peak: float
) -> list[dict[str, Any]]:
    if work.length > 512:
        sides = {name: build for name, build in sides.items() if not name.startswith("BERT")}
    shape = {"length": work.length, "rows": work.rows}
    ours, *others = bench_sides.measure(sides, work, arguments, shape)
    share = _flops(work) / statistics.median(ours.seconds) / peak
    return [ours.row() | {"share_of_peak": share}, *(other.row() for other in others)]


def _flops(work: Work) -> float:
    model = ModelConfig(vocab_size=VOCABULARY, num_hidden_layers=work.layers, max_position_embeddings=work.length)
    if work.whole:
        return work.rows * training_flops_per_sequence(model, work.length, 0.15, work.rows)
    one_more = model.model_copy(update={"num_hidden_layers": work.layers + 1})
    few, more = (work.rows * training_flops_per_sequence(m, work.length, 0.0, work.rows) for m in (model, one_more))
    return work.layers * (more - few)


def _traced(step: Step, trace: Path) -> list[dict[str, Any]]:
    """Operations of a step by the time spent in themselves, the longest first."""
    step()
    with torch.profiler.profile() as profiler:
        step()
    profiler.export_chrome_trace(str(trace))
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return [
        {
            "name": event.key,
            "calls": event.count,
            "milliseconds": event.self_cpu_time_total / 1e3,
            "share": event.self_cpu_time_total / whole,
        }
        for event in events[:OPERATIONS_SHOWN]
    ]


def _title(result: dict[str, Any]) -> str:
    what = "decoder, head and loss included" if result["whole"] else "encoder alone"
    return f"forward and backward, {what}: {result['layers']} layers of base width, dropout {result['dropout']:g}"


def as_text(result: dict[str, Any]) -> str:
    lines = [
        _title(result),
        bench_sides.settings_line(result),
        "",
        *bench_sides.table(result["rows"], "length"),
    ]
    if "operations" in result:
        lines += ["", f"  {'operation':<50}{'calls':>7}{'ms':>10}{'share':>8}"]
        lines += [
            f"  {row['name'][:48]:<50}{row['calls']:>7,}{row['milliseconds']:>10.2f}{100 * row['share']:>6.1f} %"
            for row in result["operations"]
        ]
    return "\n".join(lines)
