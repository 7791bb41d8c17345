"""Small vocabularies in the layouts of the released models, and the files they come in."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from deberta_scale.data.tokenizer import SPECIAL_PIECES

UNMADE = ("<|endoftext|>", "madeupword0000", "madeupword0001")
"""Pieces of the release that no text gives."""


@dataclass(frozen=True)
class Vocabulary:
    """A GPT-2 style vocabulary and the ids that a V1 release gives its pieces."""

    encoder: dict[str, int]
    """GPT-2's own numbers."""
    merges: list[tuple[str, str]]
    ids: dict[str, int]

    @property
    def fast(self) -> dict[str, Any]:
        """`tokenizer.json` as `transformers` writes it for V1, without what is of no importance here."""
        model = {"type": "BPE", "vocab": self.ids, "merges": [list(merge) for merge in self.merges]}
        model |= {"dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
        model |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
        before = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": before, "model": model}


def train_byte_pairs(texts: list[str], size: int) -> Vocabulary:
    """Train `size` pieces, bytes counted. In the release ids go by frequency, not by GPT-2's numbers: here by name."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    encoder = model["vocab"] | {UNMADE[0]: len(model["vocab"])}
    order = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *sorted(model["vocab"]), *UNMADE, "[MASK]"]
    return Vocabulary(encoder, [tuple(merge) for merge in model["merges"]], {p: n for n, p in enumerate(order)})


def write_vocabulary_and_merges(vocabulary: Vocabulary, directory: Path) -> Path:
    """As a Hugging Face folder of V1."""
    directory.mkdir(exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(vocabulary.ids), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, vocabulary.merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def write_official(vocabulary: Vocabulary, directory: Path) -> Path:
    """As the official release: GPT-2's numbers as text, in the order of the ids; special pieces are not in it."""
    directory.mkdir(exist_ok=True)
    ordinary = [piece for piece in vocabulary.ids if piece[0] + piece[-1] != "[]" or len(piece) < 3]
    dict_map = [[str(vocabulary.encoder.get(piece, piece)), 1000 - n] for n, piece in enumerate(ordinary)]
    content = {"dict_map": dict_map, "vocab": vocabulary.merges, "encoder": vocabulary.encoder}
    torch.save(content, directory / "bpe_encoder.bin")
    return directory


def write_fast(vocabulary: Vocabulary, directory: Path) -> Path:
    """As `transformers` saves it today: tokenizer.json alone."""
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(vocabulary.fast), encoding="utf-8")
    return directory


FORMS = {
    "vocab.json and merges.txt": write_vocabulary_and_merges,
    "bpe_encoder.bin": write_official,
    "tokenizer.json": write_fast,
}


def train_pieces(
    texts: list[str],
    size: int,
    *,
    byte_fallback: bool = True,
    own: tuple[str, ...] = (),
    model_type: str = "unigram",
) -> bytes:
    """A sentencepiece model with the special ids of V2 and V3, of every character and the pieces of our `own`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type=model_type,
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=byte_fallback,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece=SPECIAL_PIECES[0],
        bos_piece=SPECIAL_PIECES[1],
        eos_piece=SPECIAL_PIECES[2],
        unk_piece=SPECIAL_PIECES[3],
        user_defined_symbols=list(own),
        minloglevel=2,
    )
    return model.getvalue()
