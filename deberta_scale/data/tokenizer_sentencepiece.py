"""Pieces of a sentencepiece model: those of data_prep/train_tokenizer.py and of the released V2 and V3."""

from typing import Any

import numpy as np
import sentencepiece

from deberta_scale.data.tokenizer_pieces import (
    MASK_PIECE,
    PUNCTUATION,
    SPECIAL,
    UNSPACED_SCRIPT,
    WORD_START,
    is_punctuation,
    is_unspaced,
)

MODEL_FILE = "spm.model"
SPACE_SIGN = "\u2581"
_STANDING_IN = "\U0010fffd"
"""A private character that no text has: it takes the place of a word while a text is normalised."""
_DUMMY_PREFIX = {False: b"\x1a\x02\x18\x00", True: b"\x1a\x02\x18\x01"}
"""`normalizer_spec { add_dummy_prefix: ... }` on the wire: behind a model's bytes it overrides that one field, since
protobuf merges what is written twice."""


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
        self._with_prefix: dict[bool, sentencepiece.SentencePieceProcessor] = {}

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        encoded: list[np.ndarray] = self.processor.encode(texts, return_type="numpy", num_threads=1)
        return encoded

    def encode_after(self, text: str) -> np.ndarray:
        # Encoding the stand-in with the text and dropping its pieces would be simpler, and wrong without byte
        # fallback: an unknown character after it would be one [UNK] with it.
        _, _, normalised = self.processor.normalize(_STANDING_IN + text).partition(_STANDING_IN)
        begins_with_space = normalised.startswith(SPACE_SIGN)
        if begins_with_space not in self._with_prefix:
            model = self.processor.serialized_model_proto() + _DUMMY_PREFIX[begins_with_space]
            self._with_prefix[begins_with_space] = sentencepiece.SentencePieceProcessor(model_proto=model)
        processor = self._with_prefix[begins_with_space]
        ids: np.ndarray = processor.encode([text], return_type="numpy", num_threads=1)[0]
        return ids

    def decode(self, ids: list[int]) -> str:
        space = " " if self.piece(ids[0]).startswith(SPACE_SIGN) else ""  # which sentencepiece leaves out
        return space + str(self.processor.decode(ids))

    def piece(self, token: int) -> str:
        return str(self.processor.id_to_piece(int(token)))

    def text_of(self, token: int) -> str:
        if self.processor.is_byte(int(token)):
            return bytes([int(self.piece(token)[1:-1], 16)]).decode(errors="replace")
        return self.piece(token).replace(SPACE_SIGN, " ").strip(" ")

    def spelled(self, text: str) -> str | None:
        candidates = (text, SPACE_SIGN + text, SPACE_SIGN + text.replace(" ", SPACE_SIGN))
        return next((c for c in candidates if self.piece(self.processor.piece_to_id(c)) == c), None)

    def flags(self) -> np.ndarray:
        """A byte piece `<0xNN>` starts no word: bytes are parts of one character, and join what stands before them."""
        return np.array([self._flags_of(token) for token in range(self.size)], dtype=np.uint8)

    def _flags_of(self, token: int) -> int:
        processor = self.processor
        if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
            return SPECIAL
        if processor.is_byte(token):
            return 0
        piece = processor.id_to_piece(token)
        text = piece.replace(SPACE_SIGN, "")
        punctuation = bool(text) and all(map(is_punctuation, text))
        unspaced = any(map(is_unspaced, map(ord, text)))
        starts = piece.startswith(SPACE_SIGN) or unspaced or (punctuation and len(piece) == 1)
        return WORD_START * starts | PUNCTUATION * punctuation | UNSPACED_SCRIPT * unspaced

    def versions(self) -> dict[str, Any]:
        return {"sentencepiece_version": sentencepiece.__version__}

    def files(self) -> dict[str, bytes]:
        return {MODEL_FILE: self.processor.serialized_model_proto()}
