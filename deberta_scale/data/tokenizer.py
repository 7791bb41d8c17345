"""The tokenizer of a data set: a sentencepiece model, the special ids, and what masking must know of each piece.

The ids are those of the released V2/V3 tokenizers: [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3 are pieces of the model, [MASK]
comes after its last piece.
"""

import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

FORMAT_VERSION = 1
MODEL_FILE, METADATA_FILE = "spm.model", "metadata.json"
SPECIAL_PIECES = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
PAD_ID, CLS_ID, SEP_ID, UNK_ID = range(4)
MASK_PIECE = "[MASK]"

WORD_START, SPECIAL, PUNCTUATION, UNSPACED_SCRIPT = 1, 2, 4, 8
"""Bits of `Tokenizer.flags`."""

_SPACE = "\u2581"
_UNSPACED_RANGES = (
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


class TokenizerError(ValueError):
    """A tokenizer directory that cannot be used. The message names the file."""


class Tokenizer:
    """A loaded tokenizer directory (`spm.model`, `metadata.json`)."""

    pad_id, cls_id, sep_id, unk_id = PAD_ID, CLS_ID, SEP_ID, UNK_ID

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, sha256: str) -> None:
        self.processor = processor
        self.sha256 = sha256
        """Of spm.model, hexadecimal."""
        self.pieces: int = processor.piece_size()
        self.mask_id = self.pieces
        self.vocabulary_size = self.pieces + 1

    @staticmethod
    def load(directory: Path) -> "Tokenizer":
        """Read and check a tokenizer directory.

        Raises TokenizerError when a file is missing or damaged, when `spm.model` is not the one the metadata
        describes, or when another version of sentencepiece made it: versions cut some texts differently, and the
        tokens of one data set must come from one.
        """
        model_path, metadata_path = directory / MODEL_FILE, directory / METADATA_FILE
        try:
            metadata: Any = json.loads(metadata_path.read_text(encoding="utf-8"))
            model = model_path.read_bytes()
        except OSError as error:
            raise TokenizerError(
                f"{error.filename}: cannot be read ({error.strerror}); a tokenizer directory is what"
                " data_prep/train_tokenizer.py writes"
            ) from None
        except ValueError as error:
            raise TokenizerError(f"{metadata_path}: not valid JSON ({error})") from None
        if not isinstance(metadata, dict) or metadata.get("format_version") != FORMAT_VERSION:
            raise TokenizerError(f"{metadata_path}: not the metadata of a tokenizer of format version {FORMAT_VERSION}")
        sha256 = hashlib.sha256(model).hexdigest()
        if metadata.get("sha256") != sha256:
            raise TokenizerError(
                f"{model_path}: its sha256 is {sha256[:16]}..., {METADATA_FILE} says"
                f" {str(metadata.get('sha256'))[:16]}...; the model was changed or damaged, copy the directory again"
            )
        made_by, here = metadata.get("sentencepiece_version"), sentencepiece.__version__
        if made_by != here:
            raise TokenizerError(
                f"{directory}: made with sentencepiece {made_by}, installed is {here}, which cuts some texts"
                f" differently; pip install sentencepiece=={made_by}, or train the tokenizer again"
            )
        tokenizer = Tokenizer(sentencepiece.SentencePieceProcessor(model_proto=model), sha256)
        tokenizer._check_ids(metadata, directory)
        return tokenizer

    def _check_ids(self, metadata: dict[str, Any], directory: Path) -> None:
        found = tuple(self.processor.id_to_piece(i) for i in range(len(SPECIAL_PIECES)))
        if found != SPECIAL_PIECES:
            raise TokenizerError(
                f"{directory / MODEL_FILE}: its first pieces are {', '.join(found)}; expected"
                f" {', '.join(SPECIAL_PIECES)}, as data_prep/train_tokenizer.py makes them"
            )
        for key, value in self.describe().items():
            if metadata.get(key) != value:
                raise TokenizerError(
                    f"{directory / METADATA_FILE}: {key} is {metadata.get(key)!r}, {MODEL_FILE} gives {value!r}"
                )

    def describe(self) -> dict[str, Any]:
        """What a manifest says of the tokenizer."""
        names = ("pieces", "vocabulary_size", "pad_id", "cls_id", "sep_id", "unk_id", "mask_id", "sha256")
        return {name: getattr(self, name) for name in names} | {"sentencepiece_version": sentencepiece.__version__}

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, int32, without special tokens."""
        encoded: list[np.ndarray] = self.processor.encode(texts, return_type="numpy", num_threads=1)
        return encoded

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """Text for people to read. [PAD], [CLS] and [SEP] vanish; [MASK] stands as a word of its own."""
        parts: list[list[int]] = [[]]
        for token in map(int, ids):
            if token == self.mask_id:
                parts.append([])
            else:
                parts[-1].append(token)
        return f" {MASK_PIECE} ".join(self.processor.decode(part) for part in parts).strip()

    def piece(self, token: int) -> str:
        """The piece of an id below `vocabulary_size`."""
        return MASK_PIECE if token == self.mask_id else str(self.processor.id_to_piece(int(token)))

    def flags(self) -> np.ndarray:
        """[vocabulary_size] uint8, bits WORD_START, SPECIAL, PUNCTUATION and UNSPACED_SCRIPT of each id.

        A piece starts a word when it begins with the space sign, when it is one punctuation mark (official
        `part_of_whole_word`), or when it is of a script without spaces, where a "word" would else be a sentence.
        A byte piece `<0xNN>` starts none: bytes are parts of one character, and join what stands before them.
        Control, unknown and unused pieces and [MASK] are special: never masked, never a random replacement.
        """
        flags = np.zeros(self.vocabulary_size, dtype=np.uint8)
        for token in range(self.pieces):
            flags[token] = self._flags_of(token)
        flags[self.mask_id] = SPECIAL
        return flags

    def _flags_of(self, token: int) -> int:
        processor = self.processor
        if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
            return SPECIAL
        if processor.is_byte(token):
            return 0
        piece = processor.id_to_piece(token)
        text = piece.replace(_SPACE, "")
        is_punctuation = bool(text) and all(map(_is_punctuation, text))
        is_unspaced = any(low <= ord(c) <= high for c in text for low, high in _UNSPACED_RANGES)
        starts = piece.startswith(_SPACE) or is_unspaced or (is_punctuation and len(piece) == 1)
        return WORD_START * starts | PUNCTUATION * is_punctuation | UNSPACED_SCRIPT * is_unspaced


def _is_punctuation(character: str) -> bool:
    """Unicode punctuation, and the ASCII symbols that BERT's tokenizers count as such."""
    return unicodedata.category(character).startswith("P") or character in "$+<=>^`|~"
