"""(seed, epoch, row) → which tokens of a row are predicted and what the model sees in their place.

Whole-word n-gram masking (paper, appendix A.3). The row's words are cut into spans of n = 1..max words with p(n)
proportional to 1/n; spans are taken in random order until the budget of tokens is met. So every place is as likely to
be predicted as any other: the official generator works from left to right and stops at the budget, and hardly ever
reaches the end of a row. Spans never cross special tokens, and so stay inside a document.

The twin that says the same in plain Python is `twins.PlainMasker`.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from deberta_scale.config import MaskingConfig
from deberta_scale.data.hashing import below, key_of, mix, unit
from deberta_scale.data.masking_official import choose_officially, official_word_starts
from deberta_scale.data.tokenizer import SPECIAL, WORD_START, Tokenizer

MAX_WORD_TOKENS = 8
"""A longer word is cut here: a long chain of symbols is no word to be masked whole."""
_RESERVED_LENGTH = 512
"""The official cap on predictions in a row is made for this length, whatever the row's is."""


class MaskingTables(NamedTuple):
    """What the compiled part reads of config and tokenizer."""

    flags: np.ndarray
    """[vocabulary] uint8, see Tokenizer.flags; with `official`, words start where the official rule says."""
    cumulative: np.ndarray
    """[max_span_words] float64: probability of a span of at most 1, 2, ... words."""
    probability: float
    mask_fraction: float
    random_fraction: float
    mask_id: int
    replacements: np.ndarray
    """int32: the ids that a random piece is drawn from."""
    official: bool
    most_predictions: int
    """In a row; only with `official`."""


class Masker:
    """Masks rows made with one tokenizer. The result depends on nothing but the arguments."""

    def __init__(self, config: MaskingConfig, tokenizer: Tokenizer) -> None:
        official = config.compat == "official"
        flags = tokenizer.flags()
        weights = 1.0 / np.arange(1, config.max_span_words + 1)
        everything = np.arange(tokenizer.vocabulary_size, dtype=np.int32)
        self.tables = MaskingTables(
            flags=official_word_starts(tokenizer) if official else flags,
            cumulative=np.cumsum(weights / weights.sum()),
            probability=config.probability,
            mask_fraction=config.mask_fraction,
            random_fraction=config.random_fraction,
            mask_id=tokenizer.mask_id,
            replacements=everything if official else np.flatnonzero(flags & SPECIAL == 0).astype(np.int32),
            official=official,
            most_predictions=math.ceil(_RESERVED_LENGTH * config.probability / 10) * 10,
        )

    def mask(self, tokens: np.ndarray, seed: int, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (what the model sees [L] int64, predicted places [P] int64, ascending) of a row [L].

        P is round(probability * maskable tokens), at least 1, less only where no whole word fits the rest of it.
        With `compat: official` see masking_official.
        """
        shown, work = tokens.astype(np.int64), new_work(len(tokens))
        count = mask_row(shown, work, self.tables, seed, epoch, row)
        return shown, work.places[:count]


class Work(NamedTuple):
    """Memory that masking a row needs, so that none is asked for row by row."""

    words: np.ndarray
    """[L, 3] int32: first place and end of each word, and the number of special tokens before it."""
    spans: np.ndarray
    """[L, 2] int32: first place and end."""
    chosen: np.ndarray
    """[L] bool: is the place predicted?"""
    places: np.ndarray
    """[L] int64: the predicted places, ascending: the result."""
    true_tokens: np.ndarray
    """[L] int64: what stood there: the result."""


def new_work(row_length: int) -> Work:
    """For rows of `row_length` places."""
    words, spans = np.empty((row_length, 3), np.int32), np.empty((row_length, 2), np.int32)
    return Work(words, spans, np.empty(row_length, np.bool_), *np.empty((2, row_length), np.int64))


@numba.njit(cache=True, nogil=True)
def mask_row(
    shown: np.ndarray, work: Work, tables: MaskingTables, seed: int, epoch: int, row: int
) -> int:  # pragma: no cover - compiled
    """Turn the true tokens in `shown` [L] int64 into what the model sees; returns the number of predicted places, which
    are in `work`."""
    work.chosen[: len(shown)] = False
    key = key_of(seed, epoch, row)
    if tables.official:  # noqa: SIM108 - one line would be too long
        key = choose_officially(shown, work, tables, key)
    else:
        key = _choose_places(shown, work, tables, key)
    count = 0
    for place in range(len(shown)):  # without a branch, as no processor can foresee it
        work.places[count] = place
        count += work.chosen[place]
    for number in range(count):
        place = work.places[number]
        work.true_tokens[number] = shown[place]
        key = mix(key)
        draw = unit(key)
        if draw < tables.mask_fraction:
            shown[place] = tables.mask_id
        elif draw < tables.mask_fraction + tables.random_fraction:
            key = mix(key)
            shown[place] = tables.replacements[below(key, len(tables.replacements))]
    return count


@numba.njit(cache=True, nogil=True)
def _choose_places(
    tokens: np.ndarray, work: Work, tables: MaskingTables, key: np.uint64
) -> np.uint64:  # pragma: no cover - compiled
    """Set `work.chosen`; returns the next key."""
    words, spans, chosen = work.words, work.spans, work.chosen
    num_words, num_maskable = _words(tokens, tables.flags, words)
    num_spans, key = _spans(words, num_words, tables.cumulative, key, spans)
    budget = max(1, int(tables.probability * num_maskable + 0.5)) if num_maskable else 0
    budget, first, end, key = _choose(spans, num_spans, budget, chosen, True, key)
    if budget:
        # Of the span at which the budget ends words are taken at random, as many as fit; what then is left goes to any.
        # So neither short spans nor their first words, and with them the ends of a row, are preferred.
        num_in_last = 0
        for word in range(num_words):
            if first <= words[word, 0] < end:
                spans[num_in_last, 0], spans[num_in_last, 1] = words[word, 0], words[word, 1]
                num_in_last += 1
        budget, first, end, key = _choose(spans, num_in_last, budget, chosen, False, key)
        budget, first, end, key = _choose(words, num_words, budget, chosen, False, key)
    return key


@numba.njit(cache=True, nogil=True)
def _choose(
    stretches: np.ndarray, count: int, budget: int, chosen: np.ndarray, stop_at_overflow: bool, key: np.uint64
) -> tuple[int, int, int, np.uint64]:  # pragma: no cover - compiled
    """Take of the first `count` stretches [n, 2] in random order while the budget lasts: (what is left of it, first
    place and end of the one that overflowed, the next key)."""
    for taken in range(count):
        if budget == 0:
            break
        key = mix(key)
        other = taken + below(key, count - taken)  # the next step of a Fisher-Yates shuffle
        first, end = stretches[other, 0], stretches[other, 1]
        stretches[other, 0], stretches[other, 1] = stretches[taken, 0], stretches[taken, 1]
        if end - first <= budget and not chosen[first]:
            for place in range(first, end):
                chosen[place] = True
            budget -= end - first
        elif stop_at_overflow:
            return budget, first, end, key
    return budget, 0, 0, key


@numba.njit(cache=True, nogil=True)
def _words(tokens: np.ndarray, flags: np.ndarray, words: np.ndarray) -> tuple[int, int]:  # pragma: no cover - compiled
    """Fill `words`, see Work: (words, tokens in them). Together they hold every maskable token once.

    Whether a piece starts a word cannot be foreseen by a processor, so it is computed with and not branched on.
    """
    num_words, length, num_maskable, num_special, first = 0, 0, 0, 0, 0
    for place in range(len(tokens)):
        token_flags = flags[tokens[place]]
        if token_flags & SPECIAL:
            length = 0
            num_special += 1
            continue
        starts = (length == 0) | (length == MAX_WORD_TOKENS) | ((token_flags & WORD_START) != 0)
        first = place if starts else first
        length = 1 if starts else length + 1
        num_words += starts
        num_maskable += 1
        words[num_words - 1, 0] = first
        words[num_words - 1, 1] = place + 1
        words[num_words - 1, 2] = num_special
    return num_words, num_maskable


@numba.njit(cache=True, nogil=True)
def _spans(
    words: np.ndarray, num_words: int, cumulative: np.ndarray, key: np.uint64, spans: np.ndarray
) -> tuple[int, np.uint64]:  # pragma: no cover - compiled
    """Fill `spans` [L, 2] with first place and end of each: (spans, the next key). They are runs of adjacent words and
    hold each once; a special token ends one."""
    num_spans, word = 0, 0
    while word < num_words:
        key = mix(key)
        draw, following = unit(key), word + 1
        for level in range(len(cumulative) - 1):
            following += draw >= cumulative[level]
        following = min(following, num_words)
        while words[following - 1, 2] != words[word, 2]:
            following -= 1
        spans[num_spans, 0], spans[num_spans, 1] = words[word, 0], words[following - 1, 1]
        num_spans, word = num_spans + 1, following
    return num_spans, key
