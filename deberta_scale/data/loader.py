"""This rank's micro-batches. The whole state of the loader is the number of the next sample."""

import hashlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deberta_scale.batch import MaskedBatch
from deberta_scale.config import ConfigError, DataConfig
from deberta_scale.data.masking import Masker
from deberta_scale.data.packing import Rows, pack
from deberta_scale.data.sampling import locate
from deberta_scale.data.shards import ShardError, ShardSet
from deberta_scale.data.tokenizer import Tokenizer

DIGEST_MODULUS = 2**62
_EVALUATION_SEED = 0
"""Not the run's: losses of runs with different seeds stay comparable."""


@dataclass(frozen=True)
class StepData:
    """What one rank reads for one optimizer step."""

    micro_batches: list[MaskedBatch]
    predicted_tokens: int
    useful_tokens: int
    """Without padding."""
    digest: int
    """Sum of the samples' digests, modulo DIGEST_MODULUS: the same however samples are spread over ranks."""


@dataclass(frozen=True)
class Sample:
    """A masked row: arrays as in MaskedBatch, without the batch dimension."""

    shown: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    predicted_places: np.ndarray
    predicted_ids: np.ndarray

    def digest(self) -> int:
        """A number below DIGEST_MODULUS that depends on every value."""
        content = hashlib.blake2b(digest_size=8)
        for array in (self.shown, self.segments, self.positions, self.predicted_places, self.predicted_ids):
            content.update(array.astype("<i4").tobytes())
        return int.from_bytes(content.digest(), "little") % DIGEST_MODULUS


class MaskedLoader:
    """Packs, orders and masks the rows of one split. Sample g is the same on every rank of every run."""

    def __init__(
        self,
        split_dir: Path,
        config: DataConfig,
        *,
        seed: int,
        micro_sequences: int,
        rank: int,
        world_size: int,
        model_vocab_size: int,
    ) -> None:
        """Open and check a split; each rank digests its share of the shards again.

        Raises ShardError or TokenizerError for files that are damaged or do not belong together, ConfigError when the
        model's vocabulary is too small for the tokens.
        """
        self._shards = ShardSet(split_dir)
        tokenizer = Tokenizer.load(split_dir.parent / "tokenizer")
        if tokenizer.sha256 != self._shards.tokenizer_sha256:
            raise ShardError(
                f"{split_dir}: made with another tokenizer than {split_dir.parent / 'tokenizer'}; tokenize the text"
                " again with data_prep/tokenize_corpus.py, or put the right tokenizer back"
            )
        if model_vocab_size < tokenizer.vocabulary_size:
            raise ConfigError(
                f"model.vocab_size {model_vocab_size} is too small for the tokenizer of {split_dir.parent}, which has"
                f" {tokenizer.pieces} pieces and [MASK]; give {tokenizer.vocabulary_size} or more"
            )
        for number in range(rank, self._shards.num_shards, world_size):
            self._shards.verify_shard(number)
        self._rows: Rows = pack(self._shards, config.sequence_length, config.packing)
        self._masker = Masker(config.masking, tokenizer)
        self._length = config.sequence_length
        self._seed, self._micro_sequences, self._rank, self._world_size = seed, micro_sequences, rank, world_size
        self.fingerprint = self._shards.fingerprint
        self.unigram_entropy_nats = self._shards.unigram_entropy_nats
        """Of the split: the loss of guessing by frequency alone."""

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self._rows)

    def describe(self) -> str:
        """For people."""
        padding = self._rows.padding_share(self._length)
        return (
            f"{self._shards.num_documents:,} documents, {self._shards.num_tokens:,} tokens in {len(self):,} rows of"
            f" {self._length} places ({padding:.2%} padding)"
        )

    def steps(self, first_sample: int, sequences: int) -> Generator[StepData, None, None]:
        """Step after step from sample `first_sample` on, without end; the next one is made while one is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as worker:
            coming = worker.submit(self.step, first_sample, sequences)
            while True:
                ready = coming.result()
                first_sample += sequences
                coming = worker.submit(self.step, first_sample, sequences)
                yield ready

    def step(self, first_sample: int, sequences: int) -> StepData:
        """This rank's part of the samples first_sample .. first_sample + sequences - 1 of the run."""
        per_pass = self._micro_sequences * self._world_size
        assert sequences % per_pass == 0, "BatchConfig.accumulation_steps has checked it"
        micro_batches, digest, predicted, useful = [], 0, 0, 0
        for first in range(first_sample + self._rank * self._micro_sequences, first_sample + sequences, per_pass):
            samples = [self.sample(number) for number in range(first, first + self._micro_sequences)]
            digest += sum(sample.digest() for sample in samples)
            predicted += sum(len(sample.predicted_places) for sample in samples)
            useful += sum(int(np.count_nonzero(sample.segments)) for sample in samples)
            micro_batches.append(_batch(samples, self._length))
        return StepData(micro_batches, predicted, useful, digest % DIGEST_MODULUS)

    def evaluation(self, sequences: int) -> Iterator[MaskedBatch]:
        """This rank's part of the first `sequences` rows of a fixed order, with fixed masks.

        All ranks get the same number of batches, since ZeRO-3 needs them to go through the model together; rows that
        are missing at the end are empty.
        """
        available = min(sequences, len(self))
        per_pass = self._micro_sequences * self._world_size
        for first_of_pass in range(0, available, per_pass):
            first = first_of_pass + self._rank * self._micro_sequences
            numbers = range(first, min(first + self._micro_sequences, available))
            samples = [self.sample(number, _EVALUATION_SEED) for number in numbers]
            empty = self._masked([], _EVALUATION_SEED, 0, 0)
            yield _batch(samples + [empty] * (self._micro_sequences - len(samples)), self._length)

    def sample(self, number: int, seed: int | None = None) -> Sample:
        """Sample `number` of the run, a pure function of it, the data and the seed (the run's by default)."""
        seed = self._seed if seed is None else seed
        epoch, row = locate(number, len(self), seed)
        return self._masked(self._rows.pieces(row), seed, epoch, row)

    def _masked(self, pieces: list[tuple[int, int]], seed: int, epoch: int, row: int) -> Sample:
        tokens, segments, positions = self._row(pieces)
        shown, places = self._masker.mask(tokens, seed, epoch, row)
        return Sample(shown, segments, positions, places, tokens[places])

    def _row(self, pieces: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, segments and positions [L] int32 of a row, special tokens and padding included."""
        tokens, segments, positions = (np.zeros(self._length, dtype=np.int32) for _ in range(3))
        assert Tokenizer.pad_id == 0
        place = segment_start = segment = 0
        for start, length in pieces:
            if place == 0 or not self._rows.one_segment:
                tokens[place] = Tokenizer.cls_id
                segment, segment_start, place = segment + 1, place, place + 1
            end = place + length
            tokens[place:end] = self._shards.read(start, length)
            tokens[end] = Tokenizer.sep_id
            place = end + 1
            segments[segment_start:place] = segment
            positions[segment_start:place] = np.arange(place - segment_start)
        return tokens, segments, positions


def _batch(samples: list[Sample], length: int) -> MaskedBatch:
    def stacked(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]).astype(np.int64))

    places = [sample.predicted_places + row * length for row, sample in enumerate(samples)]
    return MaskedBatch(
        token_ids=stacked("shown"),
        segment_ids=stacked("segments"),
        position_ids=stacked("positions"),
        predict_positions=torch.from_numpy(np.concatenate(places).astype(np.int64)),
        predict_ids=torch.from_numpy(np.concatenate([s.predicted_ids for s in samples]).astype(np.int64)),
        max_predictions_per_row=max(len(sample.predicted_places) for sample in samples),
    )
