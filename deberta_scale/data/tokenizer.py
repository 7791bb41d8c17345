"""The tokenizer of a data set: a model that cuts text into pieces, the special ids, and tokens added after [MASK].

Ids: [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3, the other pieces, [MASK], then the added tokens. With the 128,000 pieces of V2
and V3 added tokens begin at 128,001 and so take the spare rows of a released model's 128,100 first.
"""

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from deberta_scale.data.tokenizer_directory import (
    FORMAT_VERSION,
    METADATA_FILE,
    identity,
    open_directory,
)
from deberta_scale.data.tokenizer_pieces import (
    CLS_ID,
    MASK_PIECE,
    PAD_ID,
    PUNCTUATION,
    SEP_ID,
    SPECIAL,
    SPECIAL_PIECES,
    UNK_ID,
    UNSPACED_SCRIPT,
    WORD_START,
    Pieces,
    TokenizerError,
    any_of,
)
from deberta_scale.data.tokenizer_sentencepiece import MODEL_FILE, SentencePieces

__all__ = [
    "CLS_ID",
    "FORMAT_VERSION",
    "MASK_PIECE",
    "METADATA_FILE",
    "MODEL_FILE",
    "PAD_ID",
    "PUNCTUATION",
    "SEP_ID",
    "SPECIAL",
    "SPECIAL_PIECES",
    "UNK_ID",
    "UNSPACED_SCRIPT",
    "WORD_START",
    "Tokenizer",
    "TokenizerError",
    "any_of",
]

_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""Unicode's, which is what `tokenizers` strips; Python strips a few control characters as well."""


class Tokenizer:
    """A loaded tokenizer directory."""

    pad_id, cls_id, sep_id, unk_id = PAD_ID, CLS_ID, SEP_ID, UNK_ID

    def __init__(
        self,
        model: sentencepiece.SentencePieceProcessor | Pieces,
        sha256: str = "",
        added_tokens: tuple[str, ...] = (),
        training: dict[str, Any] | None = None,
    ) -> None:
        """`model` is a sentencepiece processor, whose file has the digest `sha256`, or any other kind of pieces.

        Raises TokenizerError for an added token that is empty, special or there twice.
        """
        if isinstance(model, sentencepiece.SentencePieceProcessor):
            model = SentencePieces(model, sha256)
        self.model: Pieces = model
        self.added_tokens = added_tokens
        self.training = training
        """What data_prep/train_tokenizer.py recorded, for people."""
        self.sha256 = identity(self.model.sha256, added_tokens)
        """Hexadecimal; another for other added tokens. Without any, that of spm.model, or of the byte pairs."""
        self.mask_id = self.model.mask_id
        self.pieces = self.mask_id if self.mask_id >= self.model.size - 1 else self.model.size
        """Ids of pieces are below this. [MASK] is not counted where it comes last."""
        self._first_added = max(self.model.size, self.mask_id + 1)
        self.vocabulary_size = self._first_added + len(added_tokens)
        ids = {MASK_PIECE: self.mask_id}
        for number, token in enumerate(added_tokens):
            if not token or token in SPECIAL_PIECES or token in ids:
                raise TokenizerError(f"added token {token!r} is empty, special or there twice; leave it out")
            ids[token] = self._first_added + number
        self.id_of_token = ids
        """Of [MASK] and the added tokens."""
        self._any_added, self._mask_or_added = any_of(added_tokens), any_of(tuple(ids))

    @staticmethod
    def load(directory: Path) -> "Tokenizer":
        """Read and check a tokenizer directory: one of ours, or one as released (see tokenizer_directory).

        One of ours is refused when another version of sentencepiece made it: versions cut some texts differently, and
        the tokens of one data set must come from one. A released one names no version; data preparation writes the
        installed one down beside the shards, and from then on it is held to that. Raises TokenizerError when a file is
        missing or damaged, or not the one the metadata describes.
        """
        opened = open_directory(directory)
        metadata = opened.metadata
        training = None if metadata is None else metadata.get("training")
        try:
            tokenizer = Tokenizer(opened.pieces, added_tokens=opened.added_tokens, training=training)
        except TokenizerError as error:
            raise TokenizerError(f"{directory}: {error}") from None
        if metadata is not None:
            for key, value in tokenizer.describe().items():
                if metadata.get(key) != value and key != "tokenizers_version":
                    raise TokenizerError(
                        f"{directory / METADATA_FILE}: {key} is {metadata.get(key)!r}, {opened.model_file} gives"
                        f" {value!r}"
                    )
        return tokenizer

    @property
    def kind(self) -> str:
        """`sentencepiece` or `byte_pair`."""
        return self.model.kind

    @property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        """Of a sentencepiece tokenizer only."""
        assert isinstance(self.model, SentencePieces), f"a {self.kind} tokenizer has no sentencepiece processor"
        return self.model.processor

    @property
    def symbols(self) -> tuple[str, ...]:
        """Pieces of a sentencepiece model that are never cut: data_prep/train_tokenizer.py --user-symbols."""
        return self.model.symbols if isinstance(self.model, SentencePieces) else ()

    def describe(self) -> dict[str, Any]:
        """What a manifest says of the tokenizer."""
        names = ("kind", "pieces", "vocabulary_size", "pad_id", "cls_id", "sep_id", "unk_id", "mask_id", "sha256")
        return {
            **{name: getattr(self, name) for name in names},
            "added_tokens": list(self.added_tokens),
            **self.model.versions(),
        }

    def metadata(self) -> dict[str, Any]:
        """What metadata.json says."""
        training = {} if self.training is None else {"training": self.training}
        return {"format_version": FORMAT_VERSION, **self.describe(), **training}

    def files(self) -> dict[str, bytes]:
        """The directory that `load` reads, by file name: the model's own files and metadata.json."""
        return self.model.files() | {METADATA_FILE: (json.dumps(self.metadata(), indent=2) + "\n").encode()}

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, int32, without special tokens. Text that spells a special piece is text."""
        if not self.added_tokens:
            return self.model.encode(texts)
        found = [self._cut(text, self._any_added) for text in texts]
        plain = iter(self.model.encode([parts[0] for parts in found]))
        return [self._joined(next(plain), parts[1:]) for parts in found]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids [n] int32 that `encode` gives, and offsets [n, 2] int64: the characters of `text`, first and behind
        the last, that each token stands for, with the spaces before it where it has a space sign."""
        added = list(self._any_added.finditer(text)) if self.added_tokens else []
        ids, offsets = self.model.encode_with_offsets(self._before(text, 0, added, 0))
        for number, token in enumerate(added, start=1):
            ids = np.append(ids, np.int32(self.id_of_token[token[0]]))
            offsets = np.concatenate([offsets, [token.span()]])
            if following := self._before(text, token.end(), added, number):
                more_ids, more_offsets = self.model.encode_with_offsets(following, after_token=True)
                ids = np.concatenate([ids, more_ids])
                offsets = np.concatenate([offsets, more_offsets + token.end()])
        return ids, offsets

    @staticmethod
    def _before(text: str, start: int, added: list[re.Match[str]], number: int) -> str:
        """The text from `start` to the added token of this number, or to the end."""
        return text[start : added[number].start()].rstrip(_WHITE_SPACE) if number < len(added) else text[start:]

    def encode_masked(self, text: str) -> list[int]:
        """As `encode`, and [MASK] in the text is the mask.

        Text beside a mask, as beside an added token, is cut as if a word stood there: no space sign where the text has
        no space, and the space before it is part of the hidden word.
        """
        first, *rest = self._cut(text, self._mask_or_added)
        ids: list[int] = self._joined(self.model.encode([first])[0], rest).tolist()
        return ids

    def _cut(self, text: str, tokens: re.Pattern[str]) -> list[Any]:
        """[text, id, text, id, text, ...]. The white space before a token is part of it."""
        parts: list[Any] = tokens.split(text)
        for place in range(1, len(parts), 2):
            parts[place - 1] = parts[place - 1].rstrip(_WHITE_SPACE)
            parts[place] = self.id_of_token[parts[place]]
        return parts

    def _joined(self, first: np.ndarray, rest: list[Any]) -> np.ndarray:
        arrays = [first]
        for token, text in zip(rest[::2], rest[1::2], strict=True):
            arrays.append(np.array([token], dtype=np.int32))
            if text:
                arrays.append(self.model.encode_after(text))
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays).astype(np.int32, copy=False)

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """Text for people to read. [PAD], [CLS] and [SEP] vanish; [MASK] and added tokens are words of their own."""
        segments: list[list[int]] = [[]]
        for token in map(int, ids):
            if token in (PAD_ID, CLS_ID, SEP_ID):
                segments.append([])
            else:
                segments[-1].append(token)
        return " ".join(text for text in map(self._text_of_segment, segments) if text)

    def _text_of_segment(self, ids: list[int]) -> str:
        text = ""
        for is_piece, run in groupby(ids, lambda token: token < self._first_added and token != self.mask_id):
            tokens = list(run)
            text += self.model.decode(tokens) if is_piece else "".join(f" {self.piece(token)}" for token in tokens)
        return text.strip()

    def piece(self, token: int) -> str:
        """The piece of an id below `vocabulary_size`."""
        if token >= self._first_added:
            return self.added_tokens[int(token) - self._first_added]
        return MASK_PIECE if token == self.mask_id else self.model.piece(token)

    def text_of(self, token: int) -> str:
        """The piece of an id as people read it, without the sign that stands for a space."""
        if token == self.mask_id or token >= self._first_added:
            return self.piece(token)
        return self.model.text_of(token)

    def flags(self) -> np.ndarray:
        """[vocabulary_size] uint8, bits WORD_START, SPECIAL, PUNCTUATION and UNSPACED_SCRIPT of each id.

        A piece starts a word when it begins with the space sign, when it is one punctuation mark (official
        `part_of_whole_word`), or when it is of a script without spaces, where a "word" would else be a sentence.
        Control, unknown and unused pieces and [MASK] are special: never masked, never a random replacement. An added
        token is a word.
        """
        flags = np.full(self.vocabulary_size, WORD_START, dtype=np.uint8)
        flags[: self.model.size] = self.model.flags()
        flags[self.mask_id] = SPECIAL
        return flags

    def problem_of_adding(self, token: str) -> str | None:
        """Why `token` had better not be added to this tokenizer, and what to do; None when it can be."""
        if not token.strip(_WHITE_SPACE):
            return "it is empty; give a token that has more than white space"
        if token != token.strip(_WHITE_SPACE) or "\n" in token:
            return "it begins or ends with white space, or holds a line feed, which no paragraph does; leave that out"
        if token in (*SPECIAL_PIECES, MASK_PIECE):
            return "the tokenizer has it, as a special piece; leave it out"
        if token in self.added_tokens:
            return f"it was added before, with the id {self.id_of_token[token]}; leave it out"
        if piece := self.model.spelled(token):
            return f"it is already the piece {piece!r} of the vocabulary; leave it out"
        return None
