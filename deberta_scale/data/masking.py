"""(seed, epoch, row) → which tokens of a row are predicted and what the model sees in their place.

Whole-word n-gram masking (paper, appendix A.3). The row's words are cut into spans of n = 1..max words with p(n)
proportional to 1/n; spans are taken in random order until the budget of tokens is met. So every place is as likely to
be predicted as any other: the official generator works from left to right and stops at the budget, and hardly ever
reaches the end of a row. Spans never cross special tokens, and so stay inside a document.
"""

import numba
import numpy as np

from deberta_scale.config import MaskingConfig
from deberta_scale.data.hashing import below, key_of, mix, unit
from deberta_scale.data.tokenizer import SPECIAL, WORD_START, Tokenizer

MAX_WORD_TOKENS = 8
"""A longer word is cut here: a long chain of symbols is no word to be masked whole."""


class Masker:
    """Masks rows made with one tokenizer. The result depends on nothing but the arguments."""

    def __init__(self, config: MaskingConfig, tokenizer: Tokenizer) -> None:
        self._config = config
        self._flags = tokenizer.flags()
        self._mask_id = tokenizer.mask_id
        self._replacements = np.flatnonzero(self._flags & SPECIAL == 0).astype(np.int32)
        weights = 1.0 / np.arange(1, config.max_span_words + 1)
        self._cumulative = np.cumsum(weights / weights.sum())

    def mask(self, tokens: np.ndarray, seed: int, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (what the model sees [L] int32, predicted places [P] int32, ascending) of a row [L] int32.

        P is round(probability * maskable tokens), at least 1, less only where no whole word fits the rest of it.
        """
        return _mask_row(
            tokens,
            self._flags,
            self._cumulative,
            self._config.probability,
            self._config.mask_fraction,
            self._config.random_fraction,
            self._mask_id,
            self._replacements,
            seed,
            epoch,
            row,
        )


@numba.njit(cache=True)
def _mask_row(
    tokens: np.ndarray,
    flags: np.ndarray,
    cumulative: np.ndarray,
    probability: float,
    mask_fraction: float,
    random_fraction: float,
    mask_id: int,
    replacements: np.ndarray,
    seed: int,
    epoch: int,
    row: int,
) -> tuple[np.ndarray, np.ndarray]:  # pragma: no cover - compiled
    key = key_of(seed, epoch, row)
    shown = tokens.copy()
    words = _words(tokens, flags)
    num_maskable = np.sum(words[:, 1] - words[:, 0])
    spans, key = _spans(words, cumulative, key)
    budget = max(1, int(probability * num_maskable + 0.5)) if num_maskable else 0
    chosen = np.zeros(len(tokens), np.bool_)
    budget, last, key = _choose(spans, budget, chosen, True, key)
    # Of the span at which the budget ends words are taken at random, as many as fit; what then is left goes to any.
    # So neither short spans nor their first words, and with them the ends of a row, are preferred.
    in_last_span = words[(words[:, 0] >= last[0]) & (words[:, 0] < last[1])]
    budget, last, key = _choose(in_last_span, budget, chosen, False, key)
    budget, last, key = _choose(words, budget, chosen, False, key)
    for place in np.flatnonzero(chosen):
        key = mix(key)
        draw = unit(key)
        if draw < mask_fraction:
            shown[place] = mask_id
        elif draw < mask_fraction + random_fraction:
            key = mix(key)
            shown[place] = replacements[below(key, len(replacements))]
    return shown, np.flatnonzero(chosen).astype(np.int32)


@numba.njit(cache=True)
def _choose(
    stretches: np.ndarray, budget: int, chosen: np.ndarray, stop_at_overflow: bool, key: np.uint64
) -> tuple[int, tuple[int, int], np.uint64]:  # pragma: no cover - compiled
    """Take stretches [n, 2] in random order while the budget lasts: (what is left of it, the one that overflowed, the
    next key)."""
    for taken in range(len(stretches)):
        if budget == 0:
            break
        key = mix(key)
        other = taken + below(key, len(stretches) - taken)  # the next step of a Fisher-Yates shuffle
        stretches[taken], stretches[other] = stretches[other].copy(), stretches[taken].copy()
        first, end = stretches[taken]
        if end - first <= budget and not chosen[first]:
            chosen[first:end] = True
            budget -= end - first
        elif stop_at_overflow:
            return budget, (first, end), key
    return budget, (0, 0), key


@numba.njit(cache=True)
def _words(tokens: np.ndarray, flags: np.ndarray) -> np.ndarray:  # pragma: no cover - compiled
    """[words, 2]: first place and end of each. Together they hold every maskable token once."""
    words = np.empty((len(tokens), 2), np.int64)
    num_words, length = 0, 0
    for place in range(len(tokens)):
        token_flags = flags[tokens[place]]
        if token_flags & SPECIAL:
            length = 0
            continue
        if length == 0 or length == MAX_WORD_TOKENS or token_flags & WORD_START:
            words[num_words, 0] = place
            num_words, length = num_words + 1, 0
        length += 1
        words[num_words - 1, 1] = place + 1
    return words[:num_words]


@numba.njit(cache=True)
def _spans(
    words: np.ndarray, cumulative: np.ndarray, key: np.uint64
) -> tuple[np.ndarray, np.uint64]:  # pragma: no cover - compiled
    """([spans, 2]: first place and end of each, the next key). Spans are runs of adjacent words and hold each once."""
    spans = np.empty_like(words)
    num_spans, words_left = 0, 0
    for word in range(len(words)):
        follows = num_spans > 0 and spans[num_spans - 1, 1] == words[word, 0]
        if words_left > 0 and follows:
            spans[num_spans - 1, 1] = words[word, 1]
        else:
            key = mix(key)
            words_left = 1 + np.searchsorted(cumulative, unit(key), side="right")
            spans[num_spans] = words[word]
            num_spans += 1
        words_left -= 1
    return spans[:num_spans], key
