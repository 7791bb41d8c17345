"""`data.masking.compat: official`: the algorithm of the released pretraining code (NGramMaskGenerator), bias included.

For reproducing what the released code does; its random numbers are other ones, its distribution is the same.
- From left to right: a window of n * int(1 / probability) units, n drawn with p(n) proportional to 1/n, of which n in a
  row are to be predicted. Masking stops after the unit that meets the budget round(probability * tokens), counting
  special tokens. Windows take 1/6 of the units and the budget 15 % of the tokens, so the end of a row is hardly ever
  predicted: of 512 places the last 32 at about 4 %, and with units of one piece none after about 462.
- A budget is at most ceil(512 * probability / 10) * 10 = 80 tokens, whatever the length: at 1,024 places half as many.
- A unit is a whole word for max_span_words > 1, otherwise a piece. A piece without the space sign joins the word before
  it, but for a single punctuation mark; so a sentence of a script without spaces is one word.
- A random piece is any of the vocabulary, special ones included.
The released code has one document, or part of one, in a row; `packing: concat` comes nearest.
"""

from typing import TYPE_CHECKING

import numba
import numpy as np

from deberta_scale.data.hashing import below, mix, unit
from deberta_scale.data.tokenizer import PUNCTUATION, SPECIAL, UNSPACED_SCRIPT, WORD_START, Tokenizer

if TYPE_CHECKING:
    from deberta_scale.data.masking import MaskingTables, Work


def official_word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """`Tokenizer.flags`, with WORD_START only where the official `part_of_whole_word` says so: it knows nothing of
    scripts without spaces."""
    flags = tokenizer.flags()
    for token in np.flatnonzero((flags & UNSPACED_SCRIPT) & np.where(flags & WORD_START, 255, 0)):
        text = tokenizer.model.decode([int(token)])
        alone = len(text) == 1 and flags[token] & PUNCTUATION
        if not (text.startswith(" ") or alone):
            flags[token] &= ~np.uint8(WORD_START)
    return flags


@numba.njit(cache=True, nogil=True)
def choose_officially(
    tokens: np.ndarray, work: "Work", tables: "MaskingTables", key: np.uint64
) -> np.uint64:  # pragma: no cover - compiled
    """Set `work.chosen` of a row of tokens [L]; returns the next key. A unit is a run of pieces; special tokens inside
    it are skipped, as the official lists hold none."""
    units = work.words
    num_units, num_tokens = 0, 0
    whole_words = len(tables.cumulative) > 1
    for place in range(len(tokens)):
        num_tokens += tokens[place] != 0  # padding comes after the official masking
        flags = tables.flags[tokens[place]]
        if flags & SPECIAL:
            continue
        if num_units == 0 or not whole_words or flags & WORD_START:
            units[num_units, 0] = place
            num_units += 1
        units[num_units - 1, 1] = place + 1
    budget = min(tables.most_predictions, max(1, round(num_tokens * tables.probability)))
    per_unit = int(1.0 / tables.probability)
    first_of_window, predicted = 0, 0
    while first_of_window < num_units and predicted < budget:
        key = mix(key)
        draw, size = unit(key), 1
        for level in range(len(tables.cumulative) - 1):
            size += draw >= tables.cumulative[level]
        window = min(size * per_unit, num_units - first_of_window)
        key = mix(key)
        first = first_of_window + below(key, window)
        end = min(first + size, num_units)
        first_of_window = max(first_of_window + window, end)
        for number in range(first, end):
            if predicted >= budget:
                break
            for place in range(units[number, 0], units[number, 1]):
                if not tables.flags[tokens[place]] & SPECIAL:
                    work.chosen[place] = True
                    predicted += 1
    return key
