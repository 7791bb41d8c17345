"""`launch/bench.py prepare`: how fast text becomes finished shards, beside what that replaces.

Four ways to the tokens of the same text: data_prep/tokenize_corpus.py; a pool of processes that sends lists of ids to
the one that writes; datasets.map; and our exported tokenizer.json in `tokenizers`. Every turn of a side is a process of
its own, whose CPU seconds are counted with those of its workers. What a start costs (processes, imports, the model) is
measured on a hundredth of the text and taken off, so that rates are those of large corpora.
"""

import argparse
import itertools
import math
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

from bench_prepare_sides import SIDES, Side
from bench_prepare_text import SAMPLE_TEXT, Text, lay_out_text, lay_out_tokenizer

from data_prep.command import positive_int
from data_prep.inputs import add_input_arguments, find_inputs, reading_of

SUMMARY = "MB and tokens a CPU second from text to shards: ours, a pool of lists, datasets.map, tokenizers."
OURS = "ours"
_START_FRACTION = 0.01
_LEAST_WORK = 0.5
"""Of a start: less work than that beside it cannot be told from its noise, and no rate is given."""
_PACKAGES = ("sentencepiece", "datasets", "pyarrow", "tokenizers", "numpy")


@dataclass(frozen=True)
class _Spent:
    """On one run of a side."""

    tokens: int
    cpu_seconds: float
    wall_seconds: float
    peak_mib: float
    """Resident, of the largest process."""


@dataclass
class _Row:
    """A side on a text, and what its turns took."""

    side: Side
    workers: int
    text: Text
    start_text: Text
    tokenizer_dir: Path
    starts: list[_Spent] = field(default_factory=list)
    turns: list[_Spent] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return self.turns[0].tokens

    def take_turn(self) -> None:
        self.starts.append(self.run_on(self.start_text))
        self.turns.append(self.run_on(self.text))

    def run_on(self, text: Text) -> _Spent:
        """In a new process."""
        return _in_new_process(partial(_spent, self.side, text.files, self.tokenizer_dir, self.workers))

    def start(self, clock: str) -> float:
        return statistics.median(getattr(spent, clock) for spent in self.starts)

    def megabytes_per_second(self, clock: str) -> list[float] | None:
        """Of each turn, the start taken off; None when the start is nearly all of it."""
        start = self.start(clock)
        seconds = [getattr(spent, clock) - start for spent in self.turns]
        if min(seconds) < _LEAST_WORK * start:
            return None
        return [(self.text.megabytes - self.start_text.megabytes) / each for each in seconds]

    def figures(self, expected_tokens: int) -> dict[str, Any]:
        of_cpu, of_wall = map(self.megabytes_per_second, ("cpu_seconds", "wall_seconds"))
        tokens_per_byte = self.tokens / (self.text.megabytes * 1e6)
        return {
            "workers": self.workers,
            "megabytes": self.text.megabytes,
            "tokens": self.tokens,
            "tokens_more_than_ours": self.tokens - expected_tokens,
            "mb_per_cpu_second": of_cpu and statistics.median(of_cpu),
            "slowest": of_cpu and min(of_cpu),
            "fastest": of_cpu and max(of_cpu),
            "mtok_per_cpu_second": of_cpu and statistics.median(of_cpu) * tokens_per_byte,
            "wall_mb_per_second": of_wall and statistics.median(of_wall),
            "start_cpu_seconds": self.start("cpu_seconds"),
            "peak_mib": statistics.median(spent.peak_mib for spent in self.turns),
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    add_input_arguments(parser, required=False)
    parser.add_argument("--tokenizer", type=Path, help="directory of a sentencepiece one (default: 4,000 pieces, made)")
    parser.add_argument("--workers", type=positive_int, default=2, help="processes of each side (default: 2)")
    parser.add_argument("--turns", type=positive_int, default=3, help="of each side; the median counts (default: 3)")
    parser.add_argument(
        "--megabytes", type=float, default=40.0, metavar="MB", help="of text; less is repeated to it (default: 40)"
    )
    parser.add_argument(
        "--slow-megabytes", type=float, default=10.0, metavar="MB", help="of it that `tokenizers` gets (default: 10)"
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises ValueError for input without text, and for a tokenizer that the other sides cannot read."""
    if not 0 < arguments.slow_megabytes <= arguments.megabytes < math.inf:
        raise ValueError(
            f"--slow-megabytes {arguments.slow_megabytes:g} must be above 0, and not above --megabytes"
            f" {arguments.megabytes:g}, which must be finite"
        )
    with tempfile.TemporaryDirectory() as directory:
        return _measured(arguments, Path(directory))


def _measured(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    texts, pieces = _in_new_process(partial(_lay_out, arguments, directory))
    sides = {OURS: (SIDES[OURS], arguments.workers)}
    if arguments.workers > 1:
        sides[f"{OURS}, 1 worker"] = (SIDES[OURS], 1)
    sides |= {name: (side, arguments.workers) for name, side in SIDES.items() if name != OURS and not _lacks(side)}
    rows = {
        name: _Row(side, workers, texts["slow" if side.is_slow else "all"], texts["start"], directory / "tokenizer")
        for name, (side, workers) in sides.items()
    }
    for _, row in itertools.product(range(arguments.turns), rows.values()):
        row.take_turn()
    ours = rows[OURS]
    tokens_of_slice = ours.run_on(texts["slow"]).tokens
    for name, row in rows.items():
        if row.tokens != ours.tokens and not row.side.is_slow:
            raise ValueError(f"{name} cut {row.tokens:,} tokens, ours {ours.tokens:,}: they do not do the same work")
    text = texts["all"]
    return {
        "text": {
            "input": text.name,
            "kind": "".join(text.files[0].suffixes),
            "megabytes": text.megabytes,
            "documents": text.num_documents,
            "files": len(text.files),
        },
        "tokenizer": str(arguments.tokenizer or SAMPLE_TEXT),
        "pieces": pieces,
        "workers": arguments.workers,
        "turns": arguments.turns,
        "versions": {name: metadata.version(name) for name in _PACKAGES if _is_there(name)},
        "sides": {
            name: row.figures(tokens_of_slice if row.side.is_slow else ours.tokens) for name, row in rows.items()
        },
        "not_installed": {name: missing for name, side in SIDES.items() if (missing := _lacks(side))},
        "times_as_fast_as": {
            name: {"cpu": _ratio(ours, row, "cpu_seconds"), "wall": _ratio(ours, row, "wall_seconds")}
            for name, row in rows.items()
            if row.side is not ours.side
        },
    }


def _lay_out(arguments: argparse.Namespace, directory: Path) -> tuple[dict[str, Text], int]:
    """The texts of all turns and the tokenizer, into `directory`. Returns the texts, and the tokenizer's pieces."""
    with_fast_file = not _lacks(SIDES["tokenizers"])
    tokenizer = lay_out_tokenizer(arguments.tokenizer, directory / "tokenizer", with_fast_file)
    files, reading = find_inputs(arguments.input or [SAMPLE_TEXT]), reading_of(arguments)
    sizes = {
        "all": arguments.megabytes,
        "slow": arguments.slow_megabytes,
        "start": arguments.slow_megabytes * _START_FRACTION,
    }
    texts = {
        name: lay_out_text(files, reading, megabytes, arguments.workers, directory / name)
        for name, megabytes in sizes.items()
    }
    return texts, tokenizer.pieces


def _ratio(ours: _Row, theirs: _Row, clock: str) -> float | None:
    """The median over turns; None where one of the two has no rates."""
    mine, others = ours.megabytes_per_second(clock), theirs.megabytes_per_second(clock)
    if mine is None or others is None:
        return None
    return statistics.median(one / other for one, other in zip(mine, others, strict=True))


def as_text(result: dict[str, Any]) -> str:
    text = result["text"]
    lines = [
        f"text: {text['megabytes']:.1f} MB of {text['input']}, {text['documents']:,} documents in {text['files']}"
        f" {text['kind']} files; {result['pieces']:,} pieces",
        ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        f"{result['turns']} turns each, {result['workers']} process(es) or threads where no other number stands; starts"
        " are taken off",
        "",
        f"  {'':<16}{'MB/CPU s':>9}{'slowest':>9}{'fastest':>9}{'Mtok/CPU s':>12}{'MB/s':>8}{'start':>8}"
        f"{'peak MiB':>10}{'text MB':>9}",
    ]
    for name, side in result["sides"].items():
        rates = (side["mb_per_cpu_second"], side["slowest"], side["fastest"])
        lines.append(
            f"  {name:<16}"
            + "".join(_figure(rate, 9, 1) for rate in rates)
            + _figure(side["mtok_per_cpu_second"], 12, 2)
            + _figure(side["wall_mb_per_second"], 8, 1)
            + f"{side['start_cpu_seconds']:>7.2f}s{side['peak_mib']:>10.0f}{side['megabytes']:>9.1f}"
        )
    lines += [f"  {name:<16} not installed: {missing}" for name, missing in result["not_installed"].items()]
    lines.append("")
    for name, times in result["times_as_fast_as"].items():
        cpu, wall = (_figure(times[clock], 0, 2) for clock in ("cpu", "wall"))
        lines.append(f"ours does {cpu} times as much as {name} in a CPU second, {wall} times in a second")
    if any(side["mb_per_cpu_second"] is None for side in result["sides"].values()):
        lines.append("-: the text is too short to tell from a start; give more --megabytes and --slow-megabytes")
    lines += [
        f"tokens: {side['tokens']:,} of {name}, {side['tokens_more_than_ours']:+,} to ours"
        for name, side in result["sides"].items()
    ]
    return "\n".join(lines)


def _figure(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def _lacks(side: Side) -> str:
    """The modules that a side needs and that are not installed."""
    return ", ".join(name for name in side.needs if not _is_there(name))


def _is_there(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it lies in is not there
        return False


def _in_new_process(work: Callable[[], Any]) -> Any:
    """Its result. This process stays small, since a process begins with the peak of the one that started it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work).result()
        except BrokenProcessPool:
            raise ValueError(
                "a process died while it was measured, perhaps for lack of memory; try fewer --workers"
            ) from None


def _spent(side: Side, files: list[Path], tokenizer_dir: Path, workers: int) -> _Spent:
    multiprocessing.set_start_method("fork", force=True)  # as it is unless, as here, a process was spawned
    with tempfile.TemporaryDirectory(dir=tokenizer_dir.parent) as out:
        begin_wall, begin_cpu = time.perf_counter(), _cpu_seconds()
        tokens = side.run(files, tokenizer_dir, workers, Path(out))
        cpu, wall = _cpu_seconds() - begin_cpu, time.perf_counter() - begin_wall
    return _Spent(tokens, cpu, wall, max(usage.ru_maxrss for usage in _usages()) / 1024)


def _usages() -> list[resource.struct_rusage]:
    """Of this process and of those it has waited for."""
    return [resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)]


def _cpu_seconds() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in _usages())
