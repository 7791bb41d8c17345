"""Text → ids by words that were cut before: the ids that a sentencepiece unigram model gives, in a third of the time.

For models in which no piece reaches over a space sign (encoding.py asks that): there the likeliest cut of a text is
made of those of its words, and each is looked for once and then kept. sentencepiece adds up float32 scores along the
text, and of two nearly as likely cuts of a word may take the other one by rounding, here and not there. So a word is
kept with how far apart its two likeliest cuts are, and a text in which rounding could matter goes to sentencepiece
itself, as does one with a character that has no piece, with a NUL, or of more than 30,000 characters, in which rounding
mostly could.
"""

import numpy as np
import sentencepiece

from data_prep.user_symbols import NORMALISATION
from data_prep.word_tables import Pieces, cut, new_search, new_words, tree_of
from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.data.tokenizer_sentencepiece import NORMAL, SPACE_SIGN, SentencePieces

_TEXT_END = "\0"
_MOST_CHARACTERS = 30_000
_MOST_WORDS = 2**19
"""That are kept, in 42 MB; then they are forgotten, all at once."""
_TRIED_BYTES = 2**20
"""After so much text it is judged whether trying is of use."""


class WordCutter:
    """Of a tokenizer that nothing in `encoding.why_not_by_words` stands against."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        assert isinstance(tokenizer.model, SentencePieces)
        self._tokenizer, self._pieces = tokenizer, _pieces_of(tokenizer.model)
        self._words, self._search = new_words(_MOST_WORDS), new_search()
        self._tried_bytes = self._cut_bytes = 0
        self._keeps_plain_text = _keeps_plain_text(tokenizer.processor)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """As `Tokenizer.encode`. While most of the text turns out to be of the kind that goes to sentencepiece anyway,
        what follows is given to it directly, and now and then some is tried again."""
        if self._tried_bytes > _TRIED_BYTES and 2 * self._cut_bytes < self._tried_bytes:
            passed = sum(map(len, texts)) // 16
            self._tried_bytes = max(self._tried_bytes - passed, self._cut_bytes)
            return self._tokenizer.encode(texts)
        ids, ends = self._cut(texts)
        others = iter(self._tokenizer.encode([texts[number] for number in np.flatnonzero(ends < 0).tolist()]))
        encoded, first = [], 0
        for end in ends.tolist():
            encoded.append(ids[first:end] if end >= 0 else next(others))
            first = max(first, end)
        return encoded

    def _cut(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts that can be cut by words, back to back, and where those of each text [T] end, or -1."""
        short = ((number, text) for number, text in enumerate(texts) if len(text) <= _MOST_CHARACTERS)
        normalised = {number: self._normalised(text) for number, text in short}
        tried = {number: text for number, text in normalised.items() if _TEXT_END not in text}
        content = _TEXT_END.join([*tried.values(), ""]).encode()
        ids, ends_of_tried = np.empty(len(content), np.int32), np.empty(len(tried), np.int64)
        cut_bytes = cut(np.frombuffer(content, np.uint8), self._pieces, self._words, self._search, ids, ends_of_tried)
        self._remember(len(content), cut_bytes)
        ends = np.full(len(texts), -1, np.int64)
        ends[list(tried)] = ends_of_tried
        return ids[: ends.max(initial=0)].copy(), ends  # of which slices are kept for a while

    def _remember(self, tried_bytes: int, cut_bytes: int) -> None:
        self._tried_bytes += tried_bytes
        self._cut_bytes += cut_bytes
        while self._tried_bytes > 8 * _TRIED_BYTES:  # so that the latest text counts most
            self._tried_bytes //= 2
            self._cut_bytes //= 2

    def _normalised(self, text: str) -> str:
        """With spaces for space signs."""
        is_plain = self._keeps_plain_text and text.isascii() and text.isprintable()
        if is_plain and text and text[0] != " " and text[-1] != " " and "  " not in text:
            return f" {text}"
        return str(self._tokenizer.processor.normalize(text)).replace(SPACE_SIGN, " ")


def _pieces_of(model: SentencePieces) -> Pieces:
    normal = np.flatnonzero(model.types == NORMAL).tolist()
    encoded = sorted((model.piece(number).replace(SPACE_SIGN, " ").encode(), number) for number in normal)
    content = np.frombuffer(b"".join(text for text, _ in encoded), np.uint8)
    ends = np.cumsum([len(text) for text, _ in encoded])
    ids = np.array([number for _, number in encoded], np.int32)
    scores = np.array([model.processor.get_score(number) for number in ids.tolist()])
    return Pieces(*tree_of(content, ends), ids, scores)


def _keeps_plain_text(processor: sentencepiece.SentencePieceProcessor) -> bool:
    """Whether the rules of the model are those that are known to change nothing in printable ASCII."""
    rules = sentencepiece.SentencePieceNormalizer(rule_name=NORMALISATION).serialized_normalizer_spec()
    printable = "".join(map(chr, range(ord("!"), ord("~") + 1)))
    is_kept = processor.normalize(f"{printable} ﬁ") == f"{SPACE_SIGN}{printable}{SPACE_SIGN}fi"
    return is_kept and rules in processor.serialized_model_proto()
