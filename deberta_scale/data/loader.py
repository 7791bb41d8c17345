"""This rank's micro-batches. The whole state of the loader is the number of the next sample."""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deberta_scale.batch import MaskedBatch
from deberta_scale.config import ConfigError, DataConfig
from deberta_scale.data.assembly import EMPTY, Output, assemble, new_output
from deberta_scale.data.masking import Masker, new_work
from deberta_scale.data.mixture import Mixture
from deberta_scale.data.sampling import rows_of
from deberta_scale.data.sources import Source, Sources, seed_of

DIGEST_MODULUS = 2**62
_ROWS_AT_ONCE = 64
"""That are assembled together: enough that a call costs little, few enough that memory just freed is used again."""
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
    digest: int
    """A number below DIGEST_MODULUS that depends on every value."""


@dataclass(frozen=True)
class EvaluationPart:
    """The held-out rows of one source."""

    source: str
    """Its name in the mixture; empty for the only one."""
    batches: Iterator[MaskedBatch]


class MaskedLoader:
    """Packs, orders, mixes and masks the rows of one split. Sample g is the same on every rank of every run."""

    def __init__(
        self,
        split_dirs: Path | dict[str, Path],
        config: DataConfig,
        *,
        seed: int,
        micro_sequences: int,
        rank: int,
        world_size: int,
        model_vocab_size: int,
        sequences_per_step: int | None = None,
    ) -> None:
        """Open and check a split: `config.split_dirs(split)`. Each rank digests its share of the shards again.

        `sequences_per_step` is what the phases of a mixture are counted in; without phases it has no effect.
        Raises ShardError or TokenizerError for files that are damaged or do not belong together, ConfigError when the
        model's vocabulary is too small for the tokens.
        """
        self._sources = Sources(split_dirs, config, seed)
        self._sources.check_vocabulary(model_vocab_size)
        self._sources.verify_share(rank, world_size)
        self._mixture = Mixture(config.mixture, sequences_per_step or 1, seed) if config.mixture else None
        self._stream = self._sources.stream()
        self._masking = Masker(config.masking, self._sources.tokenizer).tables
        self._config = config
        self._length = config.sequence_length
        self._seed, self._micro_sequences, self._rank, self._world_size = seed, micro_sequences, rank, world_size
        self.fingerprint = self._sources.fingerprint(config)
        self.source_fingerprints = self._sources.fingerprints()
        """Of each source of a mixture, by name."""

    def __len__(self) -> int:
        """Rows of an epoch, of all sources together."""
        return int(self._sources.num_rows.sum())

    @property
    def unigram_entropy_nats(self) -> float:
        """Of the split: the loss of guessing by frequency alone. Of a mixture: by the frequencies of each source, the
        mean by the first weights."""
        entropies = [source.shards.unigram_entropy_nats for source in self._sources.all]
        if self._config.mixture is None:
            return entropies[0]
        shares = self._config.mixture.share_of_run(1)
        return sum(shares[s.name] * entropy for s, entropy in zip(self._sources.all, entropies, strict=True))

    def epochs_read(self, samples: int) -> dict[str, float]:
        """How often each source was read when the run has read `samples` samples; the only one's name is empty."""
        counts = np.array([samples]) if self._mixture is None else self._mixture.read_before(samples)
        names = [source.name for source in self._sources.all]
        return dict(zip(names, (counts / self._sources.num_rows).tolist(), strict=True))

    def check_repetition(self, steps: int, sequences: int) -> None:
        """Raises ConfigError when `steps` steps of `sequences` sequences would read a source of a mixture more often
        than its `max_epochs` allows, with the number of steps that would not."""
        if self._config.mixture is None:
            return
        limits = {name: source.max_epochs for name, source in self._config.mixture.sources.items()}
        for name, epochs in self.epochs_read(steps * sequences).items():
            if epochs > limits[name]:
                share = self._config.mixture.share_of_run(steps)[name]
                allowed = bisect_right(
                    range(steps), limits[name], key=lambda step: self.epochs_read(step * sequences)[name]
                )
                raise ConfigError(
                    f"data.mixture.sources.{name}: {steps:,} steps of {sequences:,} sequences read it {epochs:.2f}"
                    f" times, its max_epochs is {limits[name]:g}; it gives {share:.2%} of the samples, so weights that"
                    f" give it {share * limits[name] / epochs:.2%} would do, or train.steps {allowed - 1:,}, or"
                    f" {epochs / limits[name]:.2f} times as much text, or max_epochs {math.ceil(epochs * 100) / 100:g}"
                )

    @property
    def padding_share(self) -> float:
        """Share of all places of an epoch that hold padding."""
        shares = [source.rows.padding_share(self._length) for source in self._sources.all]
        return float(np.average(shares, weights=self._sources.num_rows))

    def describe(self) -> str:
        """For people."""
        lines = [_describe(source, self._length) for source in self._sources.all]
        if self._sources.random_access:
            lines.append("larger than half of the memory: read without reading ahead (MADV_RANDOM)")
        return "\n  ".join(lines) if self._mixture is None else "\n  ".join(["a mixture of", *lines])

    def steps(self, first_sample: int, sequences: int) -> Generator[StepData, None, None]:
        """Step after step from sample `first_sample` on, without end. `data.workers` threads make the coming ones."""
        workers = self._config.workers
        if workers == 0:
            while True:
                yield self.step(first_sample, sequences)
                first_sample += sequences
        with ThreadPoolExecutor(workers, thread_name_prefix="loader") as pool:
            coming: deque[Future[StepData]] = deque()
            try:
                while True:
                    while len(coming) <= workers:
                        coming.append(pool.submit(self.step, first_sample, sequences))
                        first_sample += sequences
                    yield coming.popleft().result()
            finally:
                for step in coming:
                    step.cancel()

    def step(self, first_sample: int, sequences: int) -> StepData:
        """This rank's part of the samples first_sample .. first_sample + sequences - 1 of the run."""
        per_pass = self._micro_sequences * self._world_size
        assert sequences % per_pass == 0, "BatchConfig.accumulation_steps has checked it"
        passes = np.arange(first_sample + self._rank * self._micro_sequences, first_sample + sequences, per_pass)
        micro_batches: list[MaskedBatch] = []
        digest = predicted = useful = 0
        passes_at_once = max(1, _ROWS_AT_ONCE // self._micro_sequences)
        for number in range(0, len(passes), passes_at_once):
            firsts = passes[number : number + passes_at_once, np.newaxis]
            rows = self._assembled(*self._located((firsts + np.arange(self._micro_sequences)).ravel()))
            digest += int(rows.digests.sum())
            predicted += int(rows.predictions.sum())
            useful += int(rows.used.sum())
            micro_batches += _batches(rows, self._micro_sequences)
        return StepData(micro_batches, predicted, useful, digest % DIGEST_MODULUS)

    def evaluation_parts(self, sequences: int, shares: dict[str, float] | None = None) -> list[EvaluationPart]:
        """The held-out rows source by source, this rank's part of them: `shares` of `sequences` (of a run without
        phases, the weights), at least one row of each and never more than there are, always with the same masks.

        All ranks get the same number of batches, since ZeRO-3 needs them to go through the model together; rows that
        are missing at the end are empty.
        """
        if self._mixture is None:
            return [EvaluationPart("", self._evaluation_of(0, sequences))]
        if shares is None:
            assert self._config.mixture is not None
            shares = self._config.mixture.share_of_run(1)
        counts = {name: max(1, round(shares[name] * sequences)) for name in self._mixture.names}
        return [
            EvaluationPart(name, self._evaluation_of(number, counts[name]))
            for number, name in enumerate(self._mixture.names)
        ]

    def _evaluation_of(self, source: int, sequences: int) -> Iterator[MaskedBatch]:
        name = self._sources.all[source].name
        seeds = np.full(len(self._sources.all), seed_of(name, _EVALUATION_SEED))
        available = min(sequences, int(self._sources.num_rows[source]))
        for first_of_pass in range(0, available, self._micro_sequences * self._world_size):
            first = first_of_pass + self._rank * self._micro_sequences
            numbers = np.arange(first, first + self._micro_sequences)
            yield from _batches(self._assembled(np.full(len(numbers), source), numbers, seeds, available), len(numbers))

    def sample(self, number: int) -> Sample:
        """Sample `number` of the run, a pure function of it, the data and the seed."""
        row = self._assembled(*self._located(np.array([number])))
        count, digest = int(row.predictions[0]), int(row.digests[0]) % DIGEST_MODULUS
        predicted = row.predicted_places[:count], row.predicted_ids[:count]
        return Sample(row.shown[0], row.segments[0], row.positions[0], *predicted, digest)

    def _located(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, number in it) [n] int64 of each sample of the run."""
        return (np.zeros_like(samples), samples) if self._mixture is None else self._mixture.locate(samples)

    def _assembled(
        self, sources: np.ndarray, numbers: np.ndarray, seeds: np.ndarray | None = None, available: int | None = None
    ) -> Output:
        """The masked rows of samples `numbers` [B] of `sources` [B]. Rows of numbers from `available` on are empty."""
        seeds = self._sources.seeds if seeds is None else seeds
        epochs, rows = rows_of(sources, numbers, self._sources.num_rows, seeds)
        stream_rows = self._sources.first_row[sources] + rows
        if available is not None:
            stream_rows[numbers >= available] = EMPTY
        output, work = new_output(len(rows), self._length), new_work(self._length)
        keys = seeds[sources], epochs, rows
        assemble(self._stream, self._masking, work, stream_rows, *keys, self._micro_sequences, output)
        return output


def _batches(rows: Output, rows_per_batch: int) -> Iterator[MaskedBatch]:
    ends = np.cumsum(rows.predictions)
    for first in range(0, len(ends), rows_per_batch):
        of_batch = slice(first, first + rows_per_batch)
        predicted = slice(int(ends[first] - rows.predictions[first]), int(ends[of_batch][-1]))
        yield MaskedBatch(
            token_ids=torch.from_numpy(rows.shown[of_batch]),
            segment_ids=torch.from_numpy(rows.segments[of_batch]),
            position_ids=torch.from_numpy(rows.positions[of_batch]),
            predict_positions=torch.from_numpy(rows.predicted_places[predicted].copy()),
            predict_ids=torch.from_numpy(rows.predicted_ids[predicted].copy()),
            max_predictions_per_row=int(rows.predictions[of_batch].max()),
        )


def _describe(source: Source, row_length: int) -> str:
    return (
        (f"{source.name}: " if source.name else "")
        + f"{source.shards.num_documents:,} documents, {source.shards.num_tokens:,} tokens in {len(source.rows):,} rows"
        f" of {row_length} places ({source.rows.padding_share(row_length):.2%} padding)"
    )
