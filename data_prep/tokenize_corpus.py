"""Turn text into shards of tokens: `tokenize_corpus.py --input PATH... --tokenizer DIR --out DIR`.

Writes DIR/train, DIR/validation (shards in the Megatron layout and manifest.json) and DIR/tokenizer, a copy with a
record of the version that cut the text. The bytes depend on input, tokenizer and options, not on who did the work:
one process, `--workers` of them, the ranks of `mpirun -n N python -m mpi4py data_prep/tokenize_corpus.py ...`, or the
elements of a job array, after which the same command puts the result together. A killed run goes on when it is
started again. A document goes to the validation split by a hash of its text, so that adding documents moves none of the
others.

Where a data description looks for duplicates, the text is read in one or two passes more before it is cut into tokens.
Elements of a job array cannot wait for each other, and need the array once for every pass, by the same command.
"""

import argparse
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from data_prep.cleaning import UNITS, CleaningConfig
from data_prep.command import open_fraction, positive_int, report, run
from data_prep.inputs import (
    InputFile,
    Reading,
    add_input_arguments,
    find_inputs,
    reading_of,
    refuse_beside_data,
)
from data_prep.mixture_file import write_mixture
from data_prep.preparation import Preparation, Source
from data_prep.repeats import RepeatsConfig, Unfinished
from data_prep.share import Share, read_share, share_named
from data_prep.sources import DEFAULT_VALIDATION_FRACTION, DataDescription, find_source_inputs, load_description
from data_prep.workplace import SPLITS

DEFAULT_SHARD_TOKENS = 2**24


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
    repeats: RepeatsConfig | None = None,
    share: Share | None = None,
) -> dict[str, Any] | None:
    """Do this process's share of one source and, where it publishes, put the shards of both splits together.

    Returns what `Preparation.tokenize` does; None where another process publishes, or has to finish a pass first.
    Raises as `Preparation` and its methods.
    """
    preparation = Preparation(
        [Source(files, reading, out, cleaning or CleaningConfig())],
        out,
        tokenizer_dir,
        validation_fraction=validation_fraction,
        shard_tokens=shard_tokens,
        repeats=repeats or RepeatsConfig(),
        share=share or Share(0, 1, "one process"),
        workers=workers,
    )
    if preparation.find_repeats() is not None:
        return None
    result = preparation.tokenize(preparation.sources[0])
    preparation.close()
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
        _prepare(arguments, share)

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


def _prepare(arguments: argparse.Namespace, share: Share) -> None:
    description = None if arguments.data is None else load_description(arguments.data)
    preparation = _preparation(arguments, description, share)
    tells = not arguments.json and share.index == 0
    shares = f", share {share.index} of {share.count} ({share.source})" if share.count > 1 else ""
    if tells and preparation.looks_for_repeats and not preparation.is_done:
        num_files = sum(len(source.files) for source in preparation.sources)
        print(f"looking for duplicates in {num_files} file(s) with {arguments.workers} worker(s){shares}", flush=True)
    if (unfinished := preparation.find_repeats()) is not None:
        _report_pass(arguments.json, preparation.place_of_repeats, share, unfinished)
        return
    facts_by_source: dict[str, dict[str, Any]] = {}
    for source in preparation.sources:
        was_done = preparation.is_published(source)
        files = f"{len(source.files)} file(s) with {arguments.workers} worker(s)"
        if tells:
            begun = f"tokenizing {files} into {source.out}{shares}, {preparation.way_of_cutting}"
            print(_already_done(source) if was_done else begun, flush=True)
        result = preparation.tokenize(source)
        if result is None and share.communicator is not None:
            continue  # the rank that publishes tells
        facts, lines = _of_share(source, share, was_done) if result is None else _of_result(source, result)
        facts_by_source[source.out.name] = facts | {"already_done": was_done}
        if not arguments.json:
            print("\n".join(lines), flush=True)
    preparation.close()
    if not facts_by_source:
        return
    facts = {"out": str(arguments.out), "sources": facts_by_source} if description else facts_by_source.popitem()[1]
    if description is not None and share.publishes:
        path = write_mixture(description, arguments.out)
        facts["mixture"] = str(path)
        if not arguments.json:
            print(f"wrote {path}\nnext: train on all sources with data.shards=null data.mixture={path}")
    if arguments.json:
        print(json.dumps(facts))


def _preparation(arguments: argparse.Namespace, description: DataDescription | None, share: Share) -> Preparation:
    """Of the command line, or of a data description. Raises ValueError when both or neither is given."""
    how: dict[str, Any] = {"shard_tokens": arguments.shard_tokens, "share": share, "workers": arguments.workers}
    if description is None:
        if not arguments.input or arguments.tokenizer is None:
            raise ValueError("give --input and --tokenizer, or --data")
        source = Source(find_inputs(arguments.input), reading_of(arguments), arguments.out, CleaningConfig())
        how["validation_fraction"] = arguments.validation_fraction or DEFAULT_VALIDATION_FRACTION
        return Preparation([source], arguments.out, arguments.tokenizer, repeats=RepeatsConfig(), **how)
    refuse_beside_data(arguments, {"tokenizer": "tokenizer", "validation_fraction": "validation_fraction"})
    files_of = find_source_inputs(description)
    sources = [
        Source(files_of[name], source.reading, arguments.out / name, source.cleaning)
        for name, source in description.sources.items()
    ]
    how["validation_fraction"] = description.validation_fraction
    repeats = RepeatsConfig(deduplication=description.deduplication, near_duplicates=description.near_duplicates)
    return Preparation(sources, arguments.out, description.tokenizer, repeats=repeats, **how)


def _report_pass(as_json: bool, place: Path, share: Share, unfinished: Unfinished) -> None:
    number, passes, missing = unfinished.number, unfinished.passes, unfinished.missing_units
    following = f"pass {number + 1} of {passes}" + (", the last" if number + 1 == passes else "")
    lines = [
        f"share {share.index} of {share.count} is done with pass {number} of {passes}, in {place}; {missing:,} units of"
        " other shares are missing",
        f"next: when all shares are, start all of them again by the same commands, for {following}; or give the command"
        " without --share or array, which does all that is left",
    ]
    facts = {"pass": number, "passes": passes, "missing_units": missing}
    report(as_json, {"out": str(place), "share": [share.index, share.count], **facts}, lines)


def _already_done(source: Source) -> str:
    return (
        f"{source.out} is already done, judged by names and sizes of its input files (of streams their commits),"
        " tokenizer and options, and not by when files were changed; remove it to have it made again"
    )


def _of_share(source: Source, share: Share, was_done: bool) -> tuple[dict[str, Any], list[str]]:
    """Facts and lines of what a share did."""
    if was_done:
        lines = [f"share {share.index} of {share.count} has nothing to do"]
    else:
        lines = [
            f"share {share.index} of {share.count} is done, in {source.out}.partial",
            "next: when all shares are, the same command without --share or array puts the result together",
        ]
    return {"out": str(source.out), "share": [share.index, share.count]}, lines


def _of_result(source: Source, result: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Facts and lines of what was published."""
    out = source.out
    lines = [_summary(split, result[split]) for split in SPLITS]
    if result["empty_documents"]:
        lines.append(f"left out: {result['empty_documents']:,} documents without text")
    for name, counts in (result["cleaning"] | result.get("deduplication", {})).items():
        dropped = {unit: counts.get(f"{unit}_dropped", 0) for unit in UNITS}
        if told := ", ".join(f"{count:,} {unit}" for unit, count in dropped.items() if count > 0):
            lines.append(f"left out by {name}: {told}")
    lines.append(f"wrote {out}")
    lines.append(f"next: python data_prep/inspect_shards.py {out}, or train with data.shards={out}")
    facts = {split: {k: v for k, v in result[split].items() if k != "shards"} for split in SPLITS}
    counts = {key: value for key, value in result.items() if key not in SPLITS}
    return {"out": str(out), **counts, **facts}, lines


if __name__ == "__main__":
    sys.exit(main())
