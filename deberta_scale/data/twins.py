"""The slow, obvious twins of the compiled loader, in plain Python: what its tests compare it with, array by array, and
what `launch/bench.py loader` races it against. Nothing else uses them.

`OfficialGenerator` is how the released pretraining code goes about it, told again in our words: pieces as text, lists,
and one tensor a feature.
"""

import math
import random
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from deberta_scale.batch import MaskedBatch
from deberta_scale.config import DataConfig, MaskingConfig
from deberta_scale.data.masking import MAX_WORD_TOKENS
from deberta_scale.data.packing import pack
from deberta_scale.data.shards import ShardSet
from deberta_scale.data.tokenizer import CLS_ID, SEP_ID, SPECIAL, WORD_START, Tokenizer

_64_BITS = 2**64 - 1
_ROUNDS = 4
Stretch = tuple[int, int]


def mix(value: int) -> int:
    """hashing.mix"""
    value = (value + 0x9E3779B97F4A7C15) & _64_BITS
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return value ^ (value >> 31)


class Draws:
    """A stream of random numbers that belongs to three numbers."""

    def __init__(self, first: int, second: int, third: int) -> None:
        self.key = mix(mix(mix(first) ^ second) ^ third)

    def unit(self) -> float:
        self.key = mix(self.key)
        return (self.key >> 11) * 2.0**-53

    def below(self, bound: int) -> int:
        self.key = mix(self.key)
        return ((self.key >> 32) * bound) >> 32


def permuted(place: int, size: int, seed: int, epoch: int) -> int:
    """sampling.permuted"""
    key = Draws(seed, epoch, size).key
    half_bits = 1
    while 4**half_bits < size:
        half_bits += 1
    half = 2**half_bits
    while True:
        left, right = divmod(place, half)
        for number in range(_ROUNDS):
            left, right = right, left ^ (mix(right ^ mix((key + number) & _64_BITS)) % half)
        place = left * half + right
        if place < size:
            return place


class PlainMasker:
    """masking.Masker"""

    def __init__(self, config: MaskingConfig, tokenizer: Tokenizer) -> None:
        """Raises ValueError for `compat: official`, of which there is no twin number by number."""
        if config.compat != "none":
            raise ValueError(
                f"masking.compat {config.compat}: the plain twin masks only as with none; compare with"
                " OfficialGenerator, whose distribution is the same"
            )
        self.config, self.mask_id = config, tokenizer.mask_id
        self.flags: list[int] = tokenizer.flags().tolist()
        self.replacements = [token for token, flags in enumerate(self.flags) if not flags & SPECIAL]

    def mask(self, tokens: list[int], key: tuple[int, int, int]) -> list[int]:
        """Replaces in `tokens` what the model does not see; returns the predicted places, ascending."""
        draws, config = Draws(*key), self.config
        words = _words(tokens, self.flags)
        spans = _spans(words, config.max_span_words, draws)
        maskable = sum(end - first for first, end in words)
        budget = max(1, int(config.probability * maskable + 0.5)) if maskable else 0
        chosen: set[int] = set()
        overflowed = _choose(spans, budget, chosen, True, draws)
        if overflowed is not None:
            _choose([w for w in words if overflowed[0] <= w[0] < overflowed[1]], budget, chosen, False, draws)
        if len(chosen) < budget:
            _choose(words, budget, chosen, False, draws)
        for place in sorted(chosen):
            draw = draws.unit()
            if draw < config.mask_fraction:
                tokens[place] = self.mask_id
            elif draw < config.mask_fraction + config.random_fraction:
                tokens[place] = self.replacements[draws.below(len(self.replacements))]
        return sorted(chosen)


def _words(tokens: list[int], flags: list[int]) -> list[Stretch]:
    words: list[Stretch] = []
    inside = False
    for place, token in enumerate(tokens):
        special = bool(flags[token] & SPECIAL)
        if not special and inside and not flags[token] & WORD_START and place - words[-1][0] < MAX_WORD_TOKENS:
            words[-1] = (words[-1][0], place + 1)
        elif not special:
            words.append((place, place + 1))
        inside = not special
    return words


def _spans(words: list[Stretch], most_words: int, draws: Draws) -> list[Stretch]:
    weights = 1.0 / np.arange(1, most_words + 1)
    cumulative = np.cumsum(weights / weights.sum()).tolist()
    spans: list[Stretch] = []
    left = 0
    for first, end in words:
        if left and spans[-1][1] == first:
            spans[-1] = (spans[-1][0], end)
        else:
            left = 1 + bisect_right(cumulative[:-1], draws.unit())
            spans.append((first, end))
        left -= 1
    return spans


def _choose(
    stretches: list[Stretch], budget: int, chosen: set[int], stop_at_overflow: bool, draws: Draws
) -> Stretch | None:
    stretches = list(stretches)
    for taken in range(len(stretches)):
        if len(chosen) == budget:
            return None
        other = taken + draws.below(len(stretches) - taken)
        stretches[taken], stretches[other] = stretches[other], stretches[taken]
        first, end = stretches[taken]
        if end - first <= budget - len(chosen) and first not in chosen:
            chosen.update(range(first, end))
        elif stop_at_overflow:
            return first, end
    return None


class PlainLoader:
    """MaskedLoader of one source, row by row."""

    def __init__(self, split_dir: Path, config: DataConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.shards = ShardSet(split_dir)
        self.tokenizer = Tokenizer.load(split_dir.parent / "tokenizer")
        self.masker = PlainMasker(config.masking, self.tokenizer)
        self.rows = pack(self.shards, config.sequence_length, config.packing)

    def true_row(self, row: int) -> tuple[list[int], list[int], list[int]]:
        """Tokens, segments and positions of a row, without padding."""
        tokens: list[int] = []
        segments: list[int] = []
        positions: list[int] = []
        segment = 0
        for start, length in self.rows.pieces(row):
            begins = not tokens or not self.rows.one_segment
            piece = [CLS_ID] * begins + self.shards.read(start, length).tolist() + [SEP_ID]
            segment += begins
            first = 0 if begins else len(tokens)
            tokens += piece
            segments += [segment] * len(piece)
            positions += range(first, first + len(piece))
        return tokens, segments, positions

    def batch(self, samples: range) -> MaskedBatch:
        """The rows of these samples as one batch."""
        length = self.config.sequence_length
        columns: list[list[list[int]]] = [[], [], []]
        places: list[int] = []
        ids: list[int] = []
        most = 0
        for index, sample in enumerate(samples):
            epoch, place = divmod(sample, len(self.rows))
            row = permuted(place, len(self.rows), self.seed, epoch)
            true, segments, positions = self.true_row(row)
            shown = list(true)
            predicted = self.masker.mask(shown, (self.seed, epoch, row))
            for column, values in zip(columns, (shown, segments, positions), strict=True):
                column.append(values + [0] * (length - len(values)))
            places += [index * length + place for place in predicted]
            ids += [true[place] for place in predicted]
            most = max(most, len(predicted))
        return MaskedBatch(
            token_ids=torch.tensor(columns[0]),
            segment_ids=torch.tensor(columns[1]),
            position_ids=torch.tensor(columns[2]),
            predict_positions=torch.tensor(places),
            predict_ids=torch.tensor(ids),
            max_predictions_per_row=most,
        )


class OfficialGenerator:
    """Masks one line of space-separated pieces as the released MLM task does, for rows of up to `length` places."""

    def __init__(self, tokenizer: Tokenizer, length: int, max_span_words: int = 3, probability: float = 0.15) -> None:
        self.length, self.probability, self.max_span_words = length, probability, max_span_words
        names = [tokenizer.piece(token) for token in range(tokenizer.vocabulary_size)]
        self.ids = {name: token for token, name in enumerate(names)}
        self.names = list(self.ids)
        flags = tokenizer.flags()
        self.special = {name for name, flag in zip(names, flags, strict=True) if flag & SPECIAL}
        self.starts = {name for name, flag in zip(names, flags, strict=True) if flag & WORD_START}
        """Holds for scripts with spaces only, where the official rule and ours agree."""
        self.cumulative = list(accumulate(1.0 / n for n in range(1, max_span_words + 1)))

    def features(self, line: str, generator: random.Random) -> dict[str, torch.Tensor]:
        """The four tensors [length] int32 of a line; label 0 stands for no prediction."""
        pieces = ["[CLS]", *line.split()[: self.length - 2], "[SEP]"]
        labels = self.mask(pieces, generator)
        lists = {
            "input_ids": [self.ids[piece] for piece in pieces],
            "position_ids": list(range(len(pieces))),
            "input_mask": [1] * len(pieces),
            "labels": [self.ids[label] if label else 0 for label in labels],
        }
        padding = [0] * (self.length - len(pieces))
        return {name: torch.tensor(values + padding, dtype=torch.int) for name, values in lists.items()}

    def mask(self, pieces: list[str], generator: random.Random) -> list[str | None]:
        """Replaces pieces in place; returns what stood at the predicted places."""
        units: list[list[int]] = []
        for place, piece in enumerate(pieces):
            if piece in self.special:
                continue
            if self.max_span_words > 1 and units and piece not in self.starts:
                units[-1].append(place)
            else:
                units.append([place])
        budget = min(math.ceil(512 * self.probability / 10) * 10, max(1, round(len(pieces) * self.probability)))
        labels: list[str | None] = [None] * len(pieces)
        predicted = begin = 0
        while begin < len(units) and predicted < budget:
            size = 1 + bisect_right(self.cumulative[:-1], generator.random() * self.cumulative[-1])
            window = min(size * int(1 / self.probability), len(units) - begin)
            first = begin + generator.randint(0, window - 1)
            end = min(first + size, len(units))
            begin = max(begin + window, end)
            for unit in units[first:end]:
                if predicted >= budget:
                    break
                for place in unit:
                    labels[place] = pieces[place]
                    pieces[place] = self._shown(pieces[place], generator.random(), generator)
                    predicted += 1
        return labels

    def _shown(self, piece: str, draw: float, generator: random.Random) -> str:
        if draw < 0.8:
            return "[MASK]"
        return piece if draw < 0.9 else generator.choice(self.names)
