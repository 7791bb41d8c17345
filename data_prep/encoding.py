"""How preparation turns text into ids: by words that were cut before where a tokenizer allows that, or by the tokenizer
itself, with the same ids."""

from collections.abc import Callable

import numpy as np

from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.data.tokenizer_sentencepiece import NORMAL, SPACE_SIGN, SentencePieces

Encode = Callable[[list[str]], list[np.ndarray]]


def encoder_of(tokenizer: Tokenizer) -> Encode:
    """What gives the ids of texts as `Tokenizer.encode` does: that itself where words cannot be cut one by one."""
    if why_not_by_words(tokenizer) is not None:
        return tokenizer.encode
    from data_prep.word_cutting import WordCutter  # compiled and slow to import, for those processes only that cut text

    return WordCutter(tokenizer).encode


def why_not_by_words(tokenizer: Tokenizer) -> str | None:
    """What stands against cutting the text of this tokenizer word by word; None when nothing does."""
    model = tokenizer.model
    if not isinstance(model, SentencePieces):
        return "it cuts by merges of byte pairs"
    if tokenizer.added_tokens:
        return "it has added tokens"
    if model.symbols:
        return "it has user symbols"
    processor = model.processor
    try:
        processor.nbest_encode("a", nbest_size=2)
    except RuntimeError:  # only unigram models have several cuts
        return "it is no unigram model"
    cutting = np.flatnonzero(model.types == NORMAL).tolist()
    texts = map(processor.id_to_piece, cutting)
    if any(SPACE_SIGN in text[1:] or " " in text for text in texts):
        return "it has pieces that reach over a space"
    if not all(-np.inf < processor.get_score(number) <= 0.0 for number in cutting):
        return "it has scores that are no logarithms of probabilities"
    if processor.normalize("a b") != f"{SPACE_SIGN}a{SPACE_SIGN}b":
        return "it does not mark the beginning of each word by a space sign"
    return None
