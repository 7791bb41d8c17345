"""`launch/bench.py loader`: tokens a CPU second from shards to masked batches.

Three ways to the same rows: our loader; its plain Python twin, which gives the same arrays; and the released code's way
(a line of pieces, split, masked, looked up and made four tensors, one row at a time). All stand on warm files and one
thread, and take turns.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bench_prepare_text import SAMPLE_TEXT, sample_tokenizer

from data_prep.command import positive_int
from data_prep.inputs import Reading, find_inputs
from data_prep.tokenize_corpus import tokenize
from deberta_scale.config import DataConfig, MaskingConfig
from deberta_scale.data.loader import MaskedLoader
from deberta_scale.data.twins import OfficialGenerator, PlainLoader

SUMMARY = "Tokens a CPU second from shards to masked batches: our loader, its plain twin, the released code's way."
FAR_SAMPLE = 10**9
LEAST_SECONDS = 0.2
"""Of CPU that a turn takes, or rows are repeated: the clock and the caches need it."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=Path, help="directory of shards (default: made from data_prep/sample)")
    parser.add_argument("--sequence-length", type=positive_int, default=512, metavar="L")
    parser.add_argument("--packing", choices=("best_fit", "concat", "doc"), default="best_fit")
    parser.add_argument("--max-span-words", type=positive_int, default=3, metavar="N")
    parser.add_argument(
        "--rows", type=positive_int, default=2048, help="of a turn of our loader, one step (default: 2048)"
    )
    parser.add_argument("--micro-sequences", type=positive_int, default=32, help="rows of a batch (default: 32)")
    parser.add_argument("--slow-rows", type=positive_int, default=64, help="of a turn of the two others (default: 64)")
    parser.add_argument("--turns", type=positive_int, default=7, help="of each side; the median counts (default: 7)")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises ValueError for numbers that do not fit each other, and ShardError for shards that cannot be read."""
    if arguments.rows % arguments.micro_sequences:
        raise ValueError(
            f"--rows {arguments.rows} is not a multiple of --micro-sequences {arguments.micro_sequences}; give one that"
            " is"
        )
    torch.set_num_threads(1)
    with _shards(arguments.shards) as shards:
        return _measured(arguments, shards)


def _measured(arguments: argparse.Namespace, shards: Path) -> dict[str, Any]:
    length = arguments.sequence_length
    config = DataConfig(
        shards=shards,
        sequence_length=length,
        packing=arguments.packing,
        masking=MaskingConfig(max_span_words=arguments.max_span_words),
        workers=0,
    )
    loader = MaskedLoader(
        shards / "train",
        config,
        seed=1,
        micro_sequences=arguments.micro_sequences,
        rank=0,
        world_size=1,
        model_vocab_size=2**31,
    )
    plain = PlainLoader(shards / "train", config, seed=1)
    official = OfficialGenerator(plain.tokenizer, length, arguments.max_span_words)
    slow = range(arguments.slow_rows)
    rows = [loader.sample(number) for number in slow]
    useful_of_slow = sum(int((row.segments > 0).sum()) for row in rows)
    lines = [_line_of(plain, row) for row in rows]
    first = loader.step(0, arguments.rows)
    batch = first.micro_batches[0]

    def released_way() -> None:
        features = [official.features(line, random.Random(number)) for number, line in enumerate(lines)]
        _ = [torch.stack([row[name] for row in features]) for name in features[0]]

    sides: dict[str, tuple[Callable[[], Any], int]] = {
        "loader": (lambda: loader.step(0, arguments.rows), first.useful_tokens),
        "plain twin": (lambda: plain.batch(slow), useful_of_slow),
        "official way": (released_way, useful_of_slow),
    }
    repeats = {name: max(1, round(LEAST_SECONDS / _cpu_seconds(side, 1))) for name, (side, _) in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.turns):
        for name, (side, _) in sides.items():
            seconds[name].append(_cpu_seconds(side, repeats[name]))
    rates = {
        name: {
            "mtok_per_cpu_second": tokens / statistics.median(seconds[name]) / 1e6,
            "slowest": tokens / max(seconds[name]) / 1e6,
            "fastest": tokens / min(seconds[name]) / 1e6,
            "tokens_of_a_turn": tokens * repeats[name],
        }
        for name, (_, tokens) in sides.items()
    }
    ratios = {
        name: statistics.median(
            (sides["loader"][1] / ours) / (sides[name][1] / theirs)
            for ours, theirs in zip(seconds["loader"], seconds[name], strict=True)
        )
        for name in ("plain twin", "official way")
    }
    seeks = [_cpu_seconds(lambda n=n: loader.sample(FAR_SAMPLE + n), 1) for n in range(arguments.turns)]
    return {
        "shards": str(arguments.shards or SAMPLE_TEXT),
        "data": loader.describe(),
        "padding": loader.padding_share,
        "threads": 1,
        "turns": arguments.turns,
        "batch": {name: f"{list(v.shape)} {v.dtype}" for name, v in vars(batch).items() if isinstance(v, torch.Tensor)},
        "sides": rates,
        "times_as_fast_as": ratios,
        "sample_1e9_milliseconds": statistics.median(seeks) * 1e3,
    }


def as_text(result: dict[str, Any]) -> str:
    lines = [
        f"data: {result['data']}",
        "batch: " + ", ".join(f"{name} {shape}" for name, shape in result["batch"].items()),
        f"{result['turns']} turns each, one after the other in one process, {result['threads']} thread; tokens that are"
        " not padding, a CPU second",
        "",
        f"  {'':<14}{'median':>10}{'slowest':>10}{'fastest':>10}  Mtok / CPU s",
    ]
    for name, side in result["sides"].items():
        times = result["times_as_fast_as"].get(name)
        note = "" if times is None else f"  the loader is {times:,.0f} times as fast"
        figures = (side["mtok_per_cpu_second"], side["slowest"], side["fastest"])
        lines.append(f"  {name:<14}" + "".join(f"{figure:>10.2f}" for figure in figures) + note)
    lines += ["", f"padding {result['padding']:.2%}; sample 1e9 in {result['sample_1e9_milliseconds']:.2f} ms of CPU"]
    return "\n".join(lines)


@contextmanager
def _shards(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = Path(directory) / "tokenizer"
        sample_tokenizer(tokenizer)
        tokenize(find_inputs([SAMPLE_TEXT]), Reading(), tokenizer, Path(directory) / "shards")
        yield Path(directory) / "shards"


def _line_of(plain: PlainLoader, row: Any) -> str:
    """The true pieces of a row as the released code stores them."""
    tokens = row.shown.copy()
    tokens[row.predicted_places] = row.predicted_ids
    return " ".join(plain.tokenizer.piece(token) for token in tokens[row.segments > 0][1:-1].tolist())


def _cpu_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Of one repetition, all threads of the process counted."""
    begin = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - begin) / repeats
