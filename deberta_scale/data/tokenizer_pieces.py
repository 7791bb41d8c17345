"""What every kind of tokenizer has in common: the special pieces, what masking must know of a piece, and what a model
that cuts text into pieces must be able to do.

The ids are those of the released tokenizers: [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3; [MASK] is the last of the vocabulary
(V1) or comes after it (V2, V3).
"""

import re
import unicodedata
from os.path import commonprefix
from typing import Any, Protocol

import numpy as np

SPECIAL_PIECES = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
PAD_ID, CLS_ID, SEP_ID, UNK_ID = range(4)
MASK_PIECE = "[MASK]"

WORD_START, SPECIAL, PUNCTUATION, UNSPACED_SCRIPT = 1, 2, 4, 8
"""Bits of `Tokenizer.flags`."""

UNSPACED_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x19E0, 0x19FF),  # Khmer symbols
    (0x2E80, 0x2FDF),  # Han radicals
    (0x3005, 0x3007),  # Han iteration mark and zero
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),  # kana extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),  # Myanmar extensions
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),  # Han compatibility
    (0xFF66, 0xFF9F),  # half-width kana
    (0x20000, 0x3FFFF),  # Han supplements
)
"""Code points of scripts that are written without spaces, where a "word" would else be a whole sentence."""


class TokenizerError(ValueError):
    """A tokenizer directory that cannot be used. The message names the file."""


class Pieces(Protocol):
    """A model that cuts text into pieces. It knows nothing of added tokens, and text that spells a special piece is
    text to it."""

    @property
    def kind(self) -> str:
        """`sentencepiece` or `byte_pair`."""

    @property
    def sha256(self) -> str:
        """Hexadecimal; equal only for models that cut every text into the same ids."""

    @property
    def size(self) -> int:
        """Ids of the model's own file are below this."""

    @property
    def mask_id(self) -> int:
        """`size` where [MASK] is not in the model's own file."""

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, int32."""

    def encode_after(self, text: str) -> np.ndarray:
        """The ids [n] int32 of a text that goes on after a token: as if a word stood there, with a space sign only
        where the text begins with a space."""

    def encode_with_offsets(self, text: str, after_token: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The ids [n] that `encode`, or after a token `encode_after`, gives, and offsets [n, 2]: the characters of
        `text` that each piece stands for. Pieces that share one character all have it."""

    def decode(self, ids: list[int]) -> str:
        """Text, with the space before its first word where that has the space sign."""

    def piece(self, token: int) -> str:
        """The piece of an id below `size`."""

    def text_of(self, token: int) -> str:
        """The piece as people read it: without the space sign; bytes that are no whole character as U+FFFD."""

    def spelled(self, text: str) -> str | None:
        """The piece that already means this text, alone or after a space; None when there is none."""

    def flags(self) -> np.ndarray:
        """[size] uint8, see `Tokenizer.flags`."""

    def versions(self) -> dict[str, Any]:
        """The version of the library that cuts, for manifests."""

    def files(self) -> dict[str, bytes]:
        """The model's own files, by name."""


def is_punctuation(character: str) -> bool:
    """Unicode punctuation, and the ASCII symbols that BERT's tokenizers count as such."""
    return unicodedata.category(character).startswith("P") or character in "$+<=>^`|~"


def is_unspaced(code_point: int) -> bool:
    """Is it of a script that is written without spaces?"""
    return any(low <= code_point <= high for low, high in UNSPACED_RANGES)


def is_continuation(byte: int) -> bool:
    """Of UTF-8: a byte that does not begin a character."""
    return byte & 0xC0 == 0x80


def ends_in_unspaced_character(content: bytes) -> bool:
    """Is its last character, of which bytes are missing, of a script without spaces, whatever the missing bytes are?"""
    lead = next((place for place in range(len(content) - 1, -1, -1) if not is_continuation(content[place])), None)
    if lead is None or content[lead] < 0xC2 or content[lead] > 0xF4:
        return False
    num_bytes = 2 if content[lead] < 0xE0 else 3 if content[lead] < 0xF0 else 4
    missing = num_bytes - (len(content) - lead)
    code_point = content[lead] & (0x7F >> num_bytes)
    for byte in content[lead + 1 :]:
        code_point = code_point << 6 | byte & 0x3F
    low = code_point << 6 * missing if missing > 0 else code_point
    high = low | (1 << 6 * missing) - 1 if missing > 0 else low
    return missing > 0 and is_unspaced(low) and is_unspaced(high)


def special_pieces_problem(found: list[str]) -> str | None:
    """What is wrong with the first pieces of a vocabulary, or None."""
    first = tuple(found[: len(SPECIAL_PIECES)])
    if first == SPECIAL_PIECES:
        return None
    return f"its first pieces are {', '.join(first)}; expected {', '.join(SPECIAL_PIECES)}, as in the released ones"


def any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Where any of them stands in a text, the longest that begins there. One group, so that a split keeps them."""
    return re.compile(f"({_tree_pattern(list(tokens))})")


def _tree_pattern(endings: list[str]) -> str:
    """Alternatives by what they begin with, so that thousands of words are not tried one after the other."""
    shared = commonprefix(endings)  # noqa: RUF071 - of characters, these are no paths
    following: dict[str, list[str]] = {}
    for ending in (ending.removeprefix(shared) for ending in endings):
        following.setdefault(ending[:1], []).append(ending)
    may_end = "?" if following.pop("", None) else ""
    branches = "|".join(map(_tree_pattern, following.values()))
    return re.escape(shared) + (f"(?:{branches}){may_end}" if branches else "")
