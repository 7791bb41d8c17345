"""Turn text into shards of tokens: `tokenize_corpus.py --input PATH... --tokenizer DIR --out DIR`.

Writes DIR/train, DIR/validation (shards in the Megatron layout and manifest.json) and DIR/tokenizer, a copy with a
record of the version that cut the text. The bytes depend on input, tokenizer and options, not on the number of workers.
A document goes to the validation split by a hash of its text, so that adding documents moves none of the others.
"""

import argparse
import hashlib
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.command import open_fraction, positive_int, report, run
from data_prep.inputs import (
    Document,
    InputError,
    InputFile,
    Part,
    Reading,
    add_input_arguments,
    documents,
    find_inputs,
    in_short,
    plan_units,
    reading_of,
)
from deberta_scale.data.shards import ShardWriter, write_manifest
from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.durable import published_directory

TRAIN, VALIDATION = SPLITS = ("train", "validation")
DEFAULT_SHARD_TOKENS = 2**24
DEFAULT_VALIDATION_FRACTION = 0.05
_BYTES_PER_TOKEN = 4
"""Of English text; only sets the size of a unit of work, so that it fills about one shard."""
_DOCUMENTS_AT_ONCE = 256


@dataclass(frozen=True)
class Unit:
    """A piece of work that one worker does alone, into shards of its own."""

    number: int
    parts: list[Part]
    reading: Reading
    validation_fraction: float
    shard_tokens: int
    directory: Path


@dataclass(frozen=True)
class UnitResult:
    """What comes back from a worker: never tokens, which would cost a third of the time."""

    shards: dict[str, list[dict[str, Any]]]
    """By split; `name` is still that of the unit."""
    token_counts: dict[str, np.ndarray]
    empty_documents: int


_tokenizer: Tokenizer | None = None  # of this worker process


def _start_worker(tokenizer_dir: Path) -> None:
    global _tokenizer
    _tokenizer = Tokenizer.load(tokenizer_dir)


def tokenize(
    files: list[InputFile],
    reading: Reading,
    tokenizer_dir: Path,
    out: Path,
    *,
    workers: int = 1,
    validation_fraction: float = DEFAULT_VALIDATION_FRACTION,
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
) -> dict[str, Any]:
    """Write the shards of both splits and publish them. Returns the manifests by split, and the empty documents.

    Raises InputError, TokenizerError, or ValueError when `out` is in use or a split would be empty.
    """
    tokenizer = Tokenizer.load(tokenizer_dir)
    with published_directory(out) as partial:
        for split in SPLITS:
            (partial / split).mkdir()
        units = [
            Unit(number, parts, reading, validation_fraction, shard_tokens, partial)
            for number, parts in enumerate(plan_units(files, reading, shard_tokens * _BYTES_PER_TOKEN))
        ]
        results = list(_all_units(units, tokenizer_dir, workers))
        if not any(result.shards[split] for result in results for split in SPLITS):
            raise InputError(f"{in_short(files)}: no text in it, nothing to tokenize")
        manifests = {split: _finish_split(split, partial, tokenizer, results, validation_fraction) for split in SPLITS}
        (partial / "tokenizer").mkdir()
        for name, content in tokenizer.files().items():  # with the version that cut, which a released one does not say
            (partial / "tokenizer" / name).write_bytes(content)
    return manifests | {"empty_documents": sum(result.empty_documents for result in results)}


def _all_units(units: list[Unit], tokenizer_dir: Path, workers: int) -> Iterator[UnitResult]:
    """The results in the order of the units; so is the first error."""
    progress = {"total": len(units), "unit": "unit", "disable": None}
    if workers == 1 or len(units) < 2:
        _start_worker(tokenizer_dir)
        yield from tqdm(map(tokenize_unit, units), **progress)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(units)), context, _start_worker, (tokenizer_dir,)) as pool:
        try:
            yield from tqdm(pool.map(tokenize_unit, units), **progress)
        except BrokenProcessPool:
            raise ValueError("a worker process died, perhaps for lack of memory; try fewer --workers") from None


def tokenize_unit(unit: Unit) -> UnitResult:
    """Tokenize the documents of a unit into its own shards, in a worker process."""
    assert _tokenizer is not None
    outputs = {split: _SplitOutput(unit, split, _tokenizer) for split in SPLITS}
    empty_documents = 0
    everything = chain.from_iterable(documents(part, unit.reading) for part in unit.parts)
    numbered = enumerate(everything)
    while batch := list(islice(numbered, _DOCUMENTS_AT_ONCE)):
        encoded = iter(_tokenizer.encode([paragraph for _, document in batch for paragraph in document]))
        for number, document in batch:
            sequences = [sequence for sequence in islice(encoded, len(document)) if len(sequence)]
            if sequences:
                outputs[_split_of(document, unit.validation_fraction)].add(number, sequences)
            else:
                empty_documents += 1
    for output in outputs.values():
        output.close_shard()
    counts = {split: output.token_counts for split, output in outputs.items()}
    return UnitResult({split: output.shards for split, output in outputs.items()}, counts, empty_documents)


class _SplitOutput:
    """The shards of one split that a unit writes: a new one whenever the last is full."""

    def __init__(self, unit: Unit, split: str, tokenizer: Tokenizer) -> None:
        self.shards: list[dict[str, Any]] = []
        self.token_counts = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
        self._unit, self._split, self._tokenizer = unit, split, tokenizer
        self._writer: ShardWriter | None = None
        self._first_document = self._last_document = 0

    def add(self, document: int, sequences: list[np.ndarray]) -> None:
        if self._writer is None:
            prefix = self._unit.directory / self._split / f"unit-{self._unit.number:06d}-{len(self.shards):04d}"
            self._writer = ShardWriter(prefix, self._tokenizer.vocabulary_size, self._tokenizer.unk_id)
            self._first_document = document
        self._writer.add(sequences)
        self._last_document = document
        if self._writer.num_tokens >= self._unit.shard_tokens:
            self.close_shard()

    def close_shard(self) -> None:
        if self._writer is None:
            return
        parts = [{"input": part.file.name, "bytes": [part.start, part.end]} for part in self._unit.parts]
        source = {"parts": parts, "documents": [self._first_document, self._last_document + 1]}
        self.shards.append({"name": self._writer.prefix.name, **self._writer.finish(), "source": source})
        self.token_counts += self._writer.token_counts
        self._writer = None


def _split_of(document: Document, validation_fraction: float) -> str:
    digest = hashlib.blake2b("\n".join(document).encode(), digest_size=8).digest()
    return VALIDATION if int.from_bytes(digest, "little") < validation_fraction * 2**64 else TRAIN


def _finish_split(
    split: str, directory: Path, tokenizer: Tokenizer, results: list[UnitResult], validation_fraction: float
) -> dict[str, Any]:
    """Number the shards through and write the manifest."""
    shards = [shard for result in results for shard in result.shards[split]]
    if not shards:
        change = "a larger" if split == VALIDATION else "a smaller"
        raise InputError(
            f"no document fell into the {split} split; give {change} --validation-fraction (now"
            f" {validation_fraction:g}) or more documents (plain text: see --document-boundary)"
        )
    for number, shard in enumerate(shards):
        for ending in (".bin", ".idx"):
            old = directory / split / f"{shard['name']}{ending}"
            old.rename(old.with_name(f"{number:05d}{ending}"))
        shard["name"] = f"{number:05d}"
    token_counts = np.sum([result.token_counts[split] for result in results], axis=0)
    return write_manifest(directory / split, tokenizer.describe(), shards, token_counts)


def _summary(split: str, manifest: dict[str, Any]) -> str:
    return (
        f"{split}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens in {len(manifest['shards'])}"
        f" shard(s), {manifest['unknown_tokens'] / manifest['tokens']:.3%} unknown, unigram entropy"
        f" {manifest['unigram_entropy_nats']:.4f} nats"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_input_arguments(parser)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        required=True,
        help="directory written by train_tokenizer.py or add_tokens.py, or a released one: spm.model (V2, V3);"
        " vocab.json and merges.txt, bpe_encoder.bin or tokenizer.json (V1)",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write; must not exist or be empty")
    parser.add_argument("--workers", type=positive_int, default=1, help="processes (default: %(default)s)")
    parser.add_argument(
        "--validation-fraction",
        type=open_fraction,
        default=DEFAULT_VALIDATION_FRACTION,
        help="share of the documents held out for evaluation (default: %(default)s)",
    )
    parser.add_argument(
        "--shard-tokens",
        type=positive_int,
        default=DEFAULT_SHARD_TOKENS,
        help="a shard is closed when it holds this many; also the size of the units of work (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()

    out = arguments.out

    def work() -> None:
        files = find_inputs(arguments.input)
        if not arguments.json:
            print(f"tokenizing {len(files)} file(s) with {arguments.workers} worker(s)", flush=True)
        result = tokenize(
            files,
            reading_of(arguments),
            arguments.tokenizer,
            out,
            workers=arguments.workers,
            validation_fraction=arguments.validation_fraction,
            shard_tokens=arguments.shard_tokens,
        )
        lines = [_summary(split, result[split]) for split in SPLITS]
        if result["empty_documents"]:
            lines.append(f"left out: {result['empty_documents']:,} documents without text")
        lines.append(f"wrote {out}")
        lines.append(f"next: python data_prep/inspect_shards.py {out}, or train with data.shards={out}")
        facts = {split: {k: v for k, v in result[split].items() if k != "shards"} for split in SPLITS}
        report(arguments.json, {"out": str(out), "empty_documents": result["empty_documents"], **facts}, lines)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
