"""Pieces of a sentencepiece model: those of data_prep/train_tokenizer.py and of the released V2 and V3."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import sentencepiece

from deberta_scale.data.tokenizer_pieces import (
    MASK_PIECE,
    PUNCTUATION,
    SPECIAL,
    UNSPACED_SCRIPT,
    WORD_START,
    any_of,
    ends_in_unspaced_character,
    is_punctuation,
    is_unspaced,
)

MODEL_FILE = "spm.model"
SPACE_SIGN = "\u2581"
_STANDING_IN = "\U0010fffd"
"""A private character that no text has: it takes the place of a word while a text is normalised."""
_AS_IT_IS = b"\x1a\x06\x12\x00\x18\x00\x20\x00"
"""`normalizer_spec { precompiled_charsmap: "" add_dummy_prefix: false remove_extra_whitespaces: false }` on the wire:
behind a model's bytes it overrides those fields, since protobuf merges what is written twice."""

NORMAL, USER_DEFINED = 1, 4
"""Types of pieces, as in sentencepiece's `ModelProto.SentencePiece.Type`."""


class SentencePieces:
    """See `Pieces`."""

    kind = "sentencepiece"

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, sha256: str) -> None:
        self.processor = processor
        self.sha256 = sha256
        """Of spm.model, hexadecimal."""
        self.size: int = processor.piece_size()
        mask = processor.piece_to_id(MASK_PIECE)  # [UNK]'s id where there is none
        self.mask_id = mask if processor.id_to_piece(mask) == MASK_PIECE else self.size
        self.types = _piece_types(processor)
        """[size] uint8: NORMAL, USER_DEFINED, or one that the library itself tells."""
        symbols = np.flatnonzero(self.types == USER_DEFINED).tolist()
        self.symbols = tuple(processor.id_to_piece(token) for token in symbols)
        """Pieces that the user wanted (user_defined_symbols), which are never cut."""
        self._any_symbol = any_of(self.symbols)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        if self.symbols:
            return [self._encode_normalised(self.processor.normalize(text)) for text in texts]
        encoded: list[np.ndarray] = self.processor.encode(texts, return_type="numpy", num_threads=1)
        return encoded

    def encode_after(self, text: str) -> np.ndarray:
        # Encoding the stand-in with the text and dropping its pieces would be simpler, and wrong without byte
        # fallback: an unknown character after it would be one [UNK] with it.
        _, _, normalised = self.processor.normalize(_STANDING_IN + text).partition(_STANDING_IN)
        return self._encode_normalised(normalised)

    def _encode_normalised(self, text: str) -> np.ndarray:
        """Symbols are found first: sentencepiece prefers them, but it would cut one for likelier pieces that reach over
        its border ("x<" and "a>" in "x<a>")."""
        parts = self._any_symbol.split(text) if self.symbols else [text]
        plain: list[np.ndarray] = self._as_it_is.encode(parts[::2], return_type="numpy", num_threads=1)
        if len(plain) == 1:
            return plain[0]
        arrays = [plain[0]]
        for symbol, following in zip(parts[1::2], plain[1:], strict=True):
            arrays += [np.array([self.processor.piece_to_id(symbol)], dtype=np.int32), following]
        return np.concatenate(arrays).astype(np.int32, copy=False)

    def encode_with_offsets(self, text: str, after_token: bool = False) -> tuple[np.ndarray, np.ndarray]:
        before = _STANDING_IN if after_token else ""
        normalised, origins = self.processor.normalize(before + text, with_offsets=True)
        first = normalised.index(_STANDING_IN) + 1 if after_token else 0
        ids, places = self._cut_normalised(normalised[first:])
        offsets = np.maximum(np.array(origins, dtype=np.int64)[first:] - len(before), 0)[places]
        _share_characters(offsets)
        return ids, offsets

    def _cut_normalised(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """As `_encode_normalised`, with the places [n, 2] in the normalised text."""
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        start = 0
        for number, part in enumerate(self._any_symbol.split(text) if self.symbols else [text]):
            if number % 2:
                ids.append(self.processor.piece_to_id(part))
                places.append((start, start + len(part)))
            else:
                found = self._as_it_is.encode(part, return_type="offset_mapping")
                ids += found["ids"]
                places += [(start + begin, start + end) for begin, end in found["offsets"]]
            start += len(part)
        return np.array(ids, dtype=np.int32), np.array(places, dtype=np.int64).reshape(-1, 2)

    @cached_property
    def _as_it_is(self) -> sentencepiece.SentencePieceProcessor:
        """Cuts text that is normalised already."""
        return sentencepiece.SentencePieceProcessor(model_proto=self.processor.serialized_model_proto() + _AS_IT_IS)

    def _is_special(self, token: int) -> bool:
        return bool(self.processor.is_control(token) or self.processor.is_unknown(token))

    def decode(self, ids: list[int]) -> str:
        space = " " if self.piece(ids[0]).startswith(SPACE_SIGN) else ""  # which sentencepiece leaves out
        return space + str(self.processor.decode(ids))

    def piece(self, token: int) -> str:
        return str(self.processor.id_to_piece(int(token)))

    def text_of(self, token: int) -> str:
        if self.processor.is_byte(int(token)):
            return bytes([self._byte_of(int(token))]).decode(errors="replace")
        return self.piece(token).replace(SPACE_SIGN, " ").strip(" ")

    def spelled(self, text: str) -> str | None:
        candidates = (text, SPACE_SIGN + text, SPACE_SIGN + text.replace(" ", SPACE_SIGN))
        return next((c for c in candidates if self.piece(self.processor.piece_to_id(c)) == c), None)

    def flags(self) -> np.ndarray:
        """A byte piece `<0xNN>` starts no word: bytes are parts of one character, and join what stands before them. Of
        scripts without spaces a character is a word by its first byte, where that tells the script (0xE4 to 0xE9 begin
        nothing but Han)."""
        return np.array([self._flags_of(token) for token in range(self.size)], dtype=np.uint8)

    def _flags_of(self, token: int) -> int:
        processor = self.processor
        if self._is_special(token) or processor.is_unused(token):
            return SPECIAL
        if processor.is_byte(token):
            return (WORD_START | UNSPACED_SCRIPT) * ends_in_unspaced_character(bytes([self._byte_of(token)]))
        piece = processor.id_to_piece(token)
        text = piece.replace(SPACE_SIGN, "")
        punctuation = bool(text) and all(map(is_punctuation, text))
        unspaced = any(map(is_unspaced, map(ord, text)))
        starts = piece.startswith(SPACE_SIGN) or unspaced or (punctuation and len(piece) == 1)
        return WORD_START * starts | PUNCTUATION * punctuation | UNSPACED_SCRIPT * unspaced

    def _byte_of(self, token: int) -> int:
        return int(self.piece(token)[1:-1], 16)

    def versions(self) -> dict[str, Any]:
        return {"sentencepiece_version": sentencepiece.__version__}

    def files(self) -> dict[str, bytes]:
        return {MODEL_FILE: self.processor.serialized_model_proto()}


def _piece_types(processor: sentencepiece.SentencePieceProcessor) -> np.ndarray:
    """The library tells symbols of the user from other pieces in no other way."""
    pieces = (content for number, content in _fields(processor.serialized_model_proto()) if number == 1)
    return np.array([dict(_fields(piece)).get(3, NORMAL) for piece in pieces], dtype=np.uint8)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and content of each field of a protobuf message: an int, or bytes of all that is none."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            content, place = _varint(message, place)
            yield number, content
            continue
        size = {1: 8, 5: 4}.get(wire_type)
        if size is None:
            size, place = _varint(message, place)
        yield number, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """The number that begins there, and the place behind it."""
    number = shift = 0
    while True:
        byte = message[place]
        number |= (byte & 0x7F) << shift
        shift, place = shift + 7, place + 1
        if byte < 0x80:
            return number, place


def _share_characters(offsets: np.ndarray) -> None:
    """Where several pieces are one character (its bytes, or parts of a ligature) sentencepiece gives it to the last."""
    for place in range(len(offsets) - 2, -1, -1):
        begin, end = offsets[place]
        if begin == end == offsets[place + 1, 0]:
            offsets[place, 1] = offsets[place + 1, 1]
