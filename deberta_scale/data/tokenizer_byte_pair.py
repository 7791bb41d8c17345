"""Byte-level byte pair encoding, the tokenizer of the released V1 models: GPT-2's pieces under other ids.

A text is cut by GPT-2's pattern into words with the space before them, a word into bytes, and pairs are merged in the
order of the merges. As in the official code and in `transformers`, no space is put before the first word: "Hello" at
the beginning of a paragraph is another piece than "Hello" after a space, and has no space sign. It then joins the word
before it, in the paragraph above, when words are masked whole.

Cutting needs the package `tokenizers`; flags and decoding, all that training asks for, do not.
"""

import hashlib
import importlib.metadata
import json
import os
import unicodedata
from functools import cached_property
from typing import Any

import numpy as np

from deberta_scale.data.tokenizer_pieces import (
    MASK_PIECE,
    PUNCTUATION,
    SPECIAL,
    SPECIAL_PIECES,
    UNSPACED_SCRIPT,
    WORD_START,
    TokenizerError,
    ends_in_unspaced_character,
    is_continuation,
    is_punctuation,
    is_unspaced,
    special_pieces_problem,
)

VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"
_MERGES_HEADER = "#version: 0.2"
_SPACE = ord(" ")


def _byte_signs() -> list[str]:
    """By byte, the character that stands for it in pieces: itself where it is visible, else the next from U+0100 on
    (GPT-2)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]


BYTE_SIGNS = _byte_signs()
SPACE_SIGN = BYTE_SIGNS[_SPACE]
_BYTE_OF = {sign: byte for byte, sign in enumerate(BYTE_SIGNS)}

Merges = list[tuple[str, str]]


class BytePairs:
    """See `Pieces`."""

    kind = "byte_pair"

    def __init__(self, ids: dict[str, int], merges: Merges, source: str) -> None:
        """`ids` of the pieces as the release has them; [MASK] comes after them where it is not among them. `source`
        is the file that errors name.

        Raises TokenizerError when the ids or merges are not those of a byte-level vocabulary with released ids.
        """
        self.ids = _without_holes(ids, source)
        self.merges = merges
        self.vocabulary = list(self.ids)
        self._check(source)
        self.size = len(self.vocabulary)
        self.mask_id = self.ids.get(MASK_PIECE, self.size)
        self._made = {*BYTE_SIGNS, *(first + second for first, second in merges)}
        content = self.files()
        self.sha256 = hashlib.sha256(content[VOCABULARY_FILE] + b"\0" + content[MERGES_FILE]).hexdigest()
        """Of vocabulary and merges as `files` writes them: the same from whichever file they were read."""

    def _check(self, source: str) -> None:
        if problem := special_pieces_problem(self.vocabulary):
            raise TokenizerError(f"{source}: {problem}")
        missing = [byte for byte, sign in enumerate(BYTE_SIGNS) if sign not in self.ids]
        if missing:
            raise TokenizerError(
                f"{source}: no piece for {len(missing)} of the 256 bytes, the first 0x{missing[0]:02X}; text with them"
                " would be lost, so this is no byte-level vocabulary that can be used"
            )
        for first, second in self.merges:
            for piece in (first, second, first + second):
                if piece not in self.ids:
                    raise TokenizerError(
                        f"{source}: the merge of {first!r} and {second!r} needs the piece {piece!r}, which has no id;"
                        " vocabulary and merges do not belong together"
                    )

    @cached_property
    def _encoder(self) -> Any:
        # Each worker of data preparation is one process on one core; threads of its own would take others'.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            from tokenizers import Tokenizer, models, pre_tokenizers
        except ImportError:
            raise TokenizerError(
                "cutting text with a byte pair tokenizer needs the package tokenizers, which is not installed;"
                " pip install 'deberta-scale[peers]'"
            ) from None
        encoder = Tokenizer(models.BPE(vocab=self.ids, merges=self.merges))
        encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return encoder

    def can_be_made(self, piece: str) -> bool:
        """Does any text give this piece? None gives `<|endoftext|>` and `madeupword0000`, which releases have."""
        return piece in self._made

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        encoded = self._encoder.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encoded]

    def encode_after(self, text: str) -> np.ndarray:
        return self.encode([text])[0]  # no text gets a space that it does not have

    def encode_with_offsets(self, text: str, after_token: bool = False) -> tuple[np.ndarray, np.ndarray]:
        encoding = self._encoder.encode(text, add_special_tokens=False)  # the same after a token
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return np.array(encoding.ids, dtype=np.int32), offsets

    def decode(self, ids: list[int]) -> str:
        """Pieces that no text is made of are written as they are called."""
        content = b"".join(map(self._bytes_of, ids))
        return content.decode(errors="replace")

    def _bytes_of(self, token: int) -> bytes:
        piece = self.vocabulary[token]
        return bytes(map(_BYTE_OF.__getitem__, piece)) if piece in self._made else piece.encode()

    def piece(self, token: int) -> str:
        return self.vocabulary[int(token)]

    def text_of(self, token: int) -> str:
        return self._bytes_of(int(token)).decode(errors="replace").strip(" ")

    def spelled(self, text: str) -> str | None:
        content = "".join(BYTE_SIGNS[byte] for byte in text.encode())
        return next((piece for piece in (text, content, SPACE_SIGN + content) if piece in self.ids), None)

    def flags(self) -> np.ndarray:
        """A piece starts a word when it begins with a space, when it is one mark, white space or control character
        (official `part_of_whole_word`), or when it begins with a character, or its first bytes, of a script without
        spaces."""
        return np.array([self._flags_of(token) for token in range(self.size)], dtype=np.uint8)

    def _flags_of(self, token: int) -> int:
        if self.vocabulary[token] not in self._made:
            return SPECIAL
        content = self._bytes_of(token)
        text = content.decode(errors="replace")
        words = text.strip(" ")
        punctuation = bool(words) and all(map(is_punctuation, words))
        unspaced = any(map(is_unspaced, map(ord, text))) or ends_in_unspaced_character(content)
        alone = len(text) == 1 and (is_punctuation(text) or unicodedata.category(text)[0] in "CZ")
        starts = content[0] == _SPACE or alone or (unspaced and not is_continuation(content[0]))
        return WORD_START * starts | PUNCTUATION * punctuation | UNSPACED_SCRIPT * unspaced

    def versions(self) -> dict[str, Any]:
        """For information: the algorithm is fixed, versions of the library do not cut differently."""
        try:
            return {"tokenizers_version": importlib.metadata.version("tokenizers")}
        except importlib.metadata.PackageNotFoundError:
            return {"tokenizers_version": None}

    def files(self) -> dict[str, bytes]:
        lines = [_MERGES_HEADER, *(f"{first} {second}" for first, second in self.merges)]
        return {
            VOCABULARY_FILE: json.dumps(self.ids, ensure_ascii=False).encode(),
            MERGES_FILE: ("\n".join(lines) + "\n").encode(),
        }


def _without_holes(ids: dict[str, int], source: str) -> dict[str, int]:
    """In the order of the ids. An id without a piece gets a name that no text is cut into."""
    by_id = {number: piece for piece, number in ids.items()}
    if len(by_id) != len(ids) or (by_id and min(by_id) < 0):
        raise TokenizerError(f"{source}: two pieces have the same id, or one has a negative id")
    size = max(by_id, default=-1) + 1
    if size > 2 * len(ids) + len(SPECIAL_PIECES):
        raise TokenizerError(f"{source}: {len(ids)} pieces but ids up to {size - 1}; this is no vocabulary")
    return {by_id.get(number, f"[unused {number}]"): number for number in range(size)}
