"""Turn text into shards of tokens: `tokenize_corpus.py --input PATH... --tokenizer DIR --out DIR`.

Writes DIR/train, DIR/validation (shards in the Megatron layout and manifest.json) and DIR/tokenizer, a copy with a
record of the version that cut the text. The bytes depend on input, tokenizer and options, not on who did the work:
one process, `--workers` of them, the ranks of `mpirun -n N python -m mpi4py data_prep/tokenize_corpus.py ...`, or the
elements of a job array, after which the same command puts the result together. A killed run goes on when it is
started again. A document goes to the validation split by a hash of its text, so that adding documents moves none of the
others.
"""

import argparse
import dataclasses
import json
import multiprocessing
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.cleaning import CleaningConfig, by_filter, sum_counts
from data_prep.command import open_fraction, positive_int, report, run
from data_prep.inputs import (
    InputError,
    InputFile,
    Part,
    Reading,
    add_input_arguments,
    find_inputs,
    in_short,
    plan_units,
    reading_of,
)
from data_prep.share import Share, read_share, share_named
from data_prep.sources import DEFAULT_VALIDATION_FRACTION, find_source_inputs, load_description
from data_prep.tokenize_unit import SPLITS, VALIDATION, UnitWorker, join_split
from data_prep.workplace import PREPARATION_FILE, Workplace
from deberta_scale.data.shards import MANIFEST_FILE
from deberta_scale.data.tokenizer import Tokenizer

DEFAULT_SHARD_TOKENS = 2**24
_COUNTED = ("empty_documents", "cleaning")
_BYTES_PER_TOKEN = 4
"""Of English text; only sets the size of a unit of work, so that it fills about one shard."""


def tokenize(
    files: list[InputFile],
    reading: Reading,
    tokenizer_dir: Path,
    out: Path,
    *,
    workers: int = 1,
    validation_fraction: float = DEFAULT_VALIDATION_FRACTION,
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
    cleaning: CleaningConfig | None = None,
    share: Share | None = None,
) -> dict[str, Any] | None:
    """Do this process's share of the units and, where it publishes, put the shards of both splits together.

    Returns the manifests by split, `empty_documents`, and the counts of `cleaning`; None where another process
    publishes. When `out` is the result of this very command already, nothing is done. Raises InputError,
    TokenizerError, or ValueError when `out` is in use otherwise or a split would be empty; a process that works alone
    then leaves nothing behind.
    """
    share = share or Share(0, 1, "one process")
    cleaning = cleaning or CleaningConfig()
    tokenizer = Tokenizer.load(tokenizer_dir)
    units = plan_units(files, reading, shard_tokens * _BYTES_PER_TOKEN)
    plan = {
        "format_version": 1,
        "input": [file.identity() for file in files],
        "reading": dataclasses.asdict(reading),
        "tokenizer_sha256": tokenizer.sha256,
        "cleaning": cleaning.model_dump(mode="json"),
        "validation_fraction": validation_fraction,
        "shard_tokens": shard_tokens,
        "units": len(units),
    }
    workplace = Workplace(out, plan)
    if workplace.is_published:
        workplace.discard()
        return _published(out) if share.publishes else None
    workplace.open()
    try:
        worker = UnitWorker(workplace, reading, cleaning, tokenizer_dir, validation_fraction, shard_tokens)
        _do(units, share.of(range(len(units))), worker, workers)
        share.wait_for_all()
        if not share.publishes:
            return None
        return _publish(workplace, len(units), tokenizer, files, validation_fraction)
    except (InputError, UnicodeError):
        if share.count == 1:
            workplace.discard()
        raise


def _published(out: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((out / PREPARATION_FILE).read_text(encoding="utf-8"))
    manifests = {split: json.loads((out / split / MANIFEST_FILE).read_text(encoding="utf-8")) for split in SPLITS}
    return manifests | {key: facts[key] for key in _COUNTED}


def _do(units: list[list[Part]], numbers: Sequence[int], worker: UnitWorker, workers: int) -> None:
    """Those of the units that are not done yet, in this process or several."""
    left = [number for number in numbers if not worker.workplace.is_done(number)]
    sizes = {number: sum(part.end - part.start for part in units[number]) for number in numbers}
    done_bytes = sum(sizes.values()) - sum(sizes[number] for number in left)
    progress = tqdm(total=sum(sizes.values()), initial=done_bytes, unit="B", unit_scale=True, disable=None)
    with progress:
        for number in _results(partial(_work, worker, units), left, workers):
            progress.update(sizes[number])


def _work(worker: UnitWorker, units: list[list[Part]], number: int) -> int:
    worker.do(number, units[number])
    return number


def _results(work: Any, numbers: list[int], workers: int) -> Iterator[int]:
    """Numbers as their work is done, in order; so is the first error."""
    if workers == 1 or len(numbers) < 2:
        yield from map(work, numbers)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(numbers)), context) as pool:
        try:
            yield from pool.map(work, numbers)
        except BrokenProcessPool:
            raise ValueError(
                "a worker process died, perhaps for lack of memory; try fewer --workers. The same command goes on from"
                " the last finished unit"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)  # units under way are waited for, so that nobody writes afterwards
            raise


def _publish(
    workplace: Workplace, num_units: int, tokenizer: Tokenizer, files: list[InputFile], validation_fraction: float
) -> dict[str, Any]:
    fragments = [workplace.fragment(number) for number in range(num_units)]
    if not any(fragment["shards"][split] for fragment in fragments for split in SPLITS):
        raise InputError(f"{in_short(files)}: no text in it, nothing to tokenize")
    for split in SPLITS:
        if not any(fragment["shards"][split] for fragment in fragments):
            change = "a larger" if split == VALIDATION else "a smaller"
            raise InputError(
                f"no document fell into the {split} split; give {change} --validation-fraction (now"
                f" {validation_fraction:g}) or more documents (plain text: see --document-boundary)"
            )
    counts = sum_counts(fragment["cleaning"] for fragment in fragments)
    result: dict[str, Any] = {
        "empty_documents": sum(fragment["empty_documents"] for fragment in fragments),
        "cleaning": by_filter(counts),
    }

    def fill(directory: Path) -> dict[str, Any]:
        for split in SPLITS:
            result[split] = join_split(split, directory, workplace, fragments, tokenizer)
        (directory / "tokenizer").mkdir()
        for name, content in tokenizer.files().items():  # with the version that cut, which a released one does not say
            (directory / "tokenizer" / name).write_bytes(content)
        return {key: result[key] for key in _COUNTED}

    workplace.publish(fill)
    return result


def _summary(split: str, manifest: dict[str, Any]) -> str:
    return (
        f"{split}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens in {len(manifest['shards'])}"
        f" shard(s), {manifest['unknown_tokens'] / manifest['tokens']:.3%} unknown, unigram entropy"
        f" {manifest['unigram_entropy_nats']:.4f} nats"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_input_arguments(parser, required=False)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="YAML",
        help="instead of --input, --tokenizer and their options: a description of several sources, each of which"
        " becomes a directory of its own in --out, with the filters it names; see configs/data/example.yaml",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="directory written by train_tokenizer.py or add_tokens.py, or a released one: spm.model (V2, V3);"
        " vocab.json and merges.txt, bpe_encoder.bin or tokenizer.json (V1)",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write; must not exist or be empty")
    parser.add_argument("--workers", type=positive_int, default=1, help="processes (default: %(default)s)")
    parser.add_argument(
        "--validation-fraction",
        type=open_fraction,
        help=f"share of the documents held out for evaluation (default: {DEFAULT_VALIDATION_FRACTION})",
    )
    parser.add_argument(
        "--shard-tokens",
        type=positive_int,
        default=DEFAULT_SHARD_TOKENS,
        help="a shard is closed when it holds this many; also the size of the units of work (default: %(default)s)",
    )
    parser.add_argument(
        "--share",
        type=share_named,
        metavar="I/N",
        help="do the units I, I+N, ... (from 0) and publish nothing; SLURM job arrays and MPI say this by themselves",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()
    share: Share | None = arguments.share

    def work() -> None:
        nonlocal share
        share = share or read_share()
        for job in _jobs(arguments):
            if not arguments.json and share.index == 0:
                shares = f", share {share.index} of {share.count} ({share.source})" if share.count > 1 else ""
                print(f"tokenizing {len(job.files)} file(s) with {arguments.workers} worker(s) into {job.out}{shares}")
                sys.stdout.flush()
            result = job.tokenize(workers=arguments.workers, shard_tokens=arguments.shard_tokens, share=share)
            if result is not None:
                _report(arguments.json, job.out, result)
            elif share.communicator is None:
                _report_share(arguments.json, job.out, share)

    code = 1
    try:
        code = run(work)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        if code and share is not None:
            share.fail_together()
    return code


@dataclasses.dataclass(frozen=True)
class _Job:
    """One directory of shards to make."""

    files: list[InputFile]
    reading: Reading
    tokenizer_dir: Path
    out: Path
    validation_fraction: float
    cleaning: CleaningConfig

    def tokenize(self, **how: Any) -> dict[str, Any] | None:
        what = {"validation_fraction": self.validation_fraction, "cleaning": self.cleaning}
        return tokenize(self.files, self.reading, self.tokenizer_dir, self.out, **what, **how)


def _jobs(arguments: argparse.Namespace) -> list[_Job]:
    """Of the command line, or of each source of a data description. Raises ValueError when both or neither is given."""
    if arguments.data is None:
        if not arguments.input or arguments.tokenizer is None:
            raise ValueError("give --input and --tokenizer, or --data")
        fraction = arguments.validation_fraction or DEFAULT_VALIDATION_FRACTION
        files, reading = find_inputs(arguments.input), reading_of(arguments)
        return [_Job(files, reading, arguments.tokenizer, arguments.out, fraction, CleaningConfig())]
    if arguments.input or arguments.tokenizer or arguments.validation_fraction:
        raise ValueError("--data says input, tokenizer and validation fraction; leave out those options")
    description = load_description(arguments.data)
    files_of = find_source_inputs(description)
    return [
        _Job(
            files_of[name],
            source.reading,
            description.tokenizer,
            arguments.out / name,
            description.validation_fraction,
            source.cleaning,
        )
        for name, source in description.sources.items()
    ]


def _report_share(as_json: bool, out: Path, share: Share) -> None:
    lines = [
        f"share {share.index} of {share.count} is done, in {out}.partial",
        "next: when all shares are, the same command without --share or array puts the result together",
    ]
    report(as_json, {"out": str(out), "share": [share.index, share.count]}, lines)


def _report(as_json: bool, out: Path, result: dict[str, Any]) -> None:
    lines = [_summary(split, result[split]) for split in SPLITS]
    if result["empty_documents"]:
        lines.append(f"left out: {result['empty_documents']:,} documents without text")
    for name, counts in result["cleaning"].items():
        if dropped := counts.get("documents_dropped"):
            lines.append(f"left out by {name}: {dropped:,} documents, {counts['characters_dropped']:,} characters")
    lines.append(f"wrote {out}")
    lines.append(f"next: python data_prep/inspect_shards.py {out}, or train with data.shards={out}")
    facts = {split: {k: v for k, v in result[split].items() if k != "shards"} for split in SPLITS}
    report(as_json, {"out": str(out), **{key: result[key] for key in _COUNTED}, **facts}, lines)


if __name__ == "__main__":
    sys.exit(main())
