"""One unit of work: documents in, shards of both splits out; and the joining of all units' shards."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.cleaning import Cleaner
from data_prep.encoding import Encode, encoder_of
from data_prep.inputs import Document, Part
from data_prep.passes import TextUnit
from data_prep.repeats import Repeats
from data_prep.workplace import SPLITS, TRAIN, VALIDATION, Units, take_over
from deberta_scale.data.shards import ShardWriter, write_manifest
from deberta_scale.data.tokenizer import Tokenizer, TokenizerError

_CHARACTERS_AT_ONCE = 2**20
_CHARACTERS_OF_A_DOCUMENT = 256
"""What one costs beside its text, so that empty ones fill a batch too."""
_tokenizers: dict[str, Tokenizer] = {}
_encoders: dict[str, Encode] = {}
"""By the sha256 of the tokenizer: made once in each process that works."""


@dataclass(frozen=True)
class UnitWorker:
    """Does units in whatever process it is sent to. Tokens never travel between processes: that takes a third of the
    time."""

    finished: Units
    tokenizer_dir: Path
    tokenizer_sha256: str
    validation_fraction: float
    shard_tokens: int
    repeats: Repeats | None = None
    """What to omit, where that was looked for."""
    first_unit: int = 0
    """The number, in `repeats`, of this source's first unit."""

    def do(self, number: int, unit: TextUnit) -> None:
        """Write a unit into `finished`. Raises InputError naming file and line, or TokenizerError."""
        tokenizer, encode = self._tokenizer()
        cleaner = Cleaner(unit.cleaning)
        # The split before anything is omitted: a paragraph more or less moves no document to the other one.
        chosen = ((_split_of(document, self.validation_fraction), document) for document in unit.documents(cleaner))
        with self.finished.writing(number) as (directory, fragment):
            outputs = {
                split: _SplitOutput(directory, split, unit.parts, self.shard_tokens, tokenizer) for split in SPLITS
            }
            if self.repeats is None:
                fragment["empty_documents"] = _tokenize(chosen, encode, outputs)
            else:
                unrepeated = self.repeats.filter_of(self.first_unit + number)
                left = ((split, unrepeated.take(document)) for split, document in chosen)
                kept = ((split, document) for split, document in left if document is not None)
                fragment["empty_documents"] = _tokenize(kept, encode, outputs)
                fragment["deduplication"] = unrepeated.counts
                self.repeats.check_same_text(self.first_unit + number, unit, cleaner.counts)
            for output in outputs.values():
                output.finish()
            fragment["cleaning"] = cleaner.counts
            fragment["shards"] = {split: output.shards for split, output in outputs.items()}

    def _tokenizer(self) -> tuple[Tokenizer, Encode]:
        if self.tokenizer_sha256 not in _tokenizers:
            keep_loaded(Tokenizer.load(self.tokenizer_dir))
        if self.tokenizer_sha256 not in _tokenizers:
            raise TokenizerError(
                f"{self.tokenizer_dir}: has changed since the start; put the old one back and start again, or remove"
                f" {self.finished.root.parent} first"
            )
        tokenizer = _tokenizers[self.tokenizer_sha256]
        if self.tokenizer_sha256 not in _encoders:
            _encoders[self.tokenizer_sha256] = encoder_of(tokenizer)
        return tokenizer, _encoders[self.tokenizer_sha256]


def keep_loaded(tokenizer: Tokenizer) -> None:
    """For the units that this process does."""
    _tokenizers.setdefault(tokenizer.sha256, tokenizer)


def _tokenize(chosen: Iterable[tuple[str, Document]], encode: Encode, outputs: dict[str, "_SplitOutput"]) -> int:
    """Write each document to its split; returns how many were without text."""
    empty_documents = 0
    for batch in _batches(enumerate(chosen)):
        encoded = iter(encode([paragraph for _, (_, document) in batch for paragraph in document]))
        for number, (split, document) in batch:
            sequences = [sequence for sequence in islice(encoded, len(document)) if len(sequence)]
            if sequences:
                outputs[split].add(number, sequences)
            else:
                empty_documents += 1
    return empty_documents


def _batches(numbered: Iterable[tuple[int, tuple[str, Document]]]) -> Iterator[list[tuple[int, tuple[str, Document]]]]:
    """Of few documents, so that little memory is needed, and of enough text that a call costs little."""
    batch: list[tuple[int, tuple[str, Document]]] = []
    characters = 0
    for number, (split, document) in numbered:
        batch.append((number, (split, document)))
        characters += _CHARACTERS_OF_A_DOCUMENT + sum(map(len, document))
        if characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _SplitOutput:
    """The shards of one split that a unit writes: a new one whenever the last is full."""

    def __init__(self, directory: Path, split: str, parts: list[Part], shard_tokens: int, tokenizer: Tokenizer) -> None:
        self.shards: list[dict[str, Any]] = []
        self._directory, self._split, self._shard_tokens, self._tokenizer = directory, split, shard_tokens, tokenizer
        self._sources = [part.origin() for part in parts]
        self._token_counts = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
        self._writer: ShardWriter | None = None
        self._first_document = self._last_document = 0

    def add(self, document: int, sequences: list[np.ndarray]) -> None:
        if self._writer is None:
            prefix = self._directory / f"{self._split}-{len(self.shards):04d}"
            self._writer = ShardWriter(prefix, self._tokenizer.vocabulary_size, self._tokenizer.unk_id)
            self._first_document = document
        self._writer.add(sequences)
        self._last_document = document
        if self._writer.num_tokens >= self._shard_tokens:
            self._close_shard()

    def finish(self) -> None:
        """Close the last shard, and write how often each id occurs, those that do."""
        self._close_shard()
        ids = np.flatnonzero(self._token_counts)
        np.savez_compressed(_counts_file(self._directory, self._split), ids=ids, counts=self._token_counts[ids])

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        source = {"parts": self._sources, "documents": [self._first_document, self._last_document + 1]}
        self.shards.append({"name": self._writer.prefix.name, **self._writer.finish(), "source": source})
        self._token_counts += self._writer.token_counts
        self._writer = None


def join_split(
    split: str, directory: Path, units: Units, fragments: list[dict[str, Any]], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Number a split's shards through, in the order of the units, and write its manifest; returns that."""
    (directory / split).mkdir()
    token_counts = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
    shards: list[dict[str, Any]] = []
    for unit, fragment in enumerate(fragments):
        place = units.directory(unit)
        for shard in fragment["shards"][split]:
            name = f"{len(shards):05d}"
            for ending in (".bin", ".idx"):
                take_over(place / f"{shard['name']}{ending}", directory / split / f"{name}{ending}")
            shards.append(shard | {"name": name})
        with np.load(_counts_file(place, split)) as counted:
            token_counts[counted["ids"]] += counted["counts"]
    return write_manifest(directory / split, tokenizer.describe(), shards, token_counts)


def _counts_file(directory: Path, split: str) -> Path:
    return directory / f"{split}-counts.npz"


def _split_of(document: Document, validation_fraction: float) -> str:
    digest = hashlib.blake2b("\n".join(document).encode(), digest_size=8).digest()
    return VALIDATION if int.from_bytes(digest, "little") < validation_fraction * 2**64 else TRAIN
