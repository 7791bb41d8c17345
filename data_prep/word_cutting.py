"""Text → ids by words that were cut before: the ids that a sentencepiece unigram model gives, in a third of the time.

No piece reaches over a space sign, so that the likeliest cut of a text is made of those of its words; each is looked
for once and then kept. sentencepiece adds up float32 scores along the text, and of two nearly as likely cuts of a word
may take the other one by rounding, here and not there. So a word is kept with how far apart its two likeliest cuts are,
and a text in which rounding could matter goes to sentencepiece itself, as does one with a character that has no piece.
"""

from collections.abc import Callable

import numpy as np
import sentencepiece

from data_prep.user_symbols import NORMALISATION
from data_prep.word_tables import Pieces, cut, new_search, new_words, tree_of
from deberta_scale.data.tokenizer import Tokenizer

Encode = Callable[[list[str]], list[np.ndarray]]
_SPACE_SIGN, _END = "\u2581", "\0"
_WORDS = 2**19
"""That are kept, in 44 MB; then they are forgotten, all at once."""
_TRIED_BYTES = 2**20


def encoder_of(tokenizer: Tokenizer) -> Encode:
    """What gives the ids of texts as `Tokenizer.encode` does: that itself where words cannot be cut one by one."""
    pieces = None if tokenizer.kind != "sentencepiece" or tokenizer.added_tokens else _pieces_of(tokenizer.processor)
    return tokenizer.encode if pieces is None else _WordCutter(tokenizer, pieces).encode


class _WordCutter:
    def __init__(self, tokenizer: Tokenizer, pieces: Pieces) -> None:
        self._tokenizer, self._pieces = tokenizer, pieces
        self._words, self._search = new_words(_WORDS), new_search()
        self._tried_bytes = self._cut_bytes = 0
        self._keeps_plain_text = _keeps_plain_text(tokenizer.processor)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """As `Tokenizer.encode`. When most of the text turns out to be of the kind that goes to sentencepiece anyway,
        all that follows is given to it directly."""
        if self._tried_bytes > _TRIED_BYTES and 2 * self._cut_bytes < self._tried_bytes:
            return self._tokenizer.encode(texts)
        content = _END.join([*map(self._normalised, texts), ""]).encode()
        if content.count(_END.encode()) != len(texts):
            return self._tokenizer.encode(texts)
        ids, ends = np.empty(len(content), np.int32), np.empty(len(texts), np.int64)
        cut_bytes = cut(np.frombuffer(content, np.uint8), self._pieces, self._words, self._search, ids, ends)
        ids = ids[: ends.max(initial=0)].copy()  # of which slices are kept for a while
        others = iter(self._tokenizer.encode([texts[number] for number in np.flatnonzero(ends < 0).tolist()]))
        encoded, first = [], 0
        for end in ends.tolist():
            encoded.append(ids[first:end] if end >= 0 else next(others))
            first = max(first, end)
        self._tried_bytes += len(content)
        self._cut_bytes += cut_bytes
        return encoded

    def _normalised(self, text: str) -> str:
        """With spaces for space signs."""
        is_plain = self._keeps_plain_text and text.isascii() and text.isprintable()
        if is_plain and text and text[0] != " " and text[-1] != " " and "  " not in text:
            return f" {text}"
        return str(self._tokenizer.processor.normalize(text)).replace(_SPACE_SIGN, " ")


def _pieces_of(processor: sentencepiece.SentencePieceProcessor) -> Pieces | None:
    """None of a model that is no unigram one, or in which a piece may reach over a space sign."""
    try:
        processor.nbest_encode("a", nbest_size=2)
    except RuntimeError:  # only unigram models have several cuts
        return None
    size = processor.piece_size()
    kinds = (processor.is_control, processor.is_unknown, processor.is_unused, processor.is_byte)
    texts = {
        processor.id_to_piece(number): number for number in range(size) if not any(is_kind(number) for is_kind in kinds)
    }
    has_inner_space = any(_SPACE_SIGN in text[1:] or " " in text for text in texts)
    has_symbol = any(processor.get_score(number) >= 0.0 for number in texts.values())
    if has_inner_space or has_symbol or processor.normalize("a b") != f"{_SPACE_SIGN}a{_SPACE_SIGN}b":
        return None
    encoded = sorted((text.replace(_SPACE_SIGN, " ").encode(), number) for text, number in texts.items())
    content = np.frombuffer(b"".join(text for text, _ in encoded), np.uint8)
    ends = np.cumsum([len(text) for text, _ in encoded])
    ids = np.array([number for _, number in encoded], np.int32)
    return Pieces(*tree_of(content, ends), ids, np.array([processor.get_score(number) for number in ids.tolist()]))


def _keeps_plain_text(processor: sentencepiece.SentencePieceProcessor) -> bool:
    """Whether the rules of the model are those that are known to change nothing in printable ASCII."""
    rules = sentencepiece.SentencePieceNormalizer(rule_name=NORMALISATION).serialized_normalizer_spec()
    printable = "".join(map(chr, range(ord("!"), ord("~") + 1)))
    is_kept = processor.normalize(f"{printable} ﬁ") == f"{_SPACE_SIGN}{printable}{_SPACE_SIGN}fi"
    return is_kept and rules in processor.serialized_model_proto()
