"""Our tokenizer → the files by which stock `transformers` and the official code cut texts into the same pieces."""

import io
import json
from pathlib import Path
from typing import Any

from deberta_scale.config import ModelConfig
from deberta_scale.convert.source import ConversionError
from deberta_scale.data.tokenizer import (
    CLS_ID,
    MASK_PIECE,
    METADATA_FILE,
    SEP_ID,
    SPECIAL_PIECES,
    UNK_ID,
    Tokenizer,
    any_of,
)
from deberta_scale.data.tokenizer_byte_pair import BytePairs

FAST_FILE = "tokenizer.json"
OFFICIAL_FILE = "bpe_encoder.bin"
_FULLWIDTH_TILDE, _NONCHARACTER = "\uff5e", "\ufdd0"


def fitting_tokenizer(directory: Path, config: ModelConfig) -> Tokenizer:
    """The tokenizer in a directory. Raises TokenizerError for one that cannot be used, ConversionError for another
    model's."""
    tokenizer = Tokenizer.load(directory)
    if tokenizer.vocabulary_size > config.vocab_size:
        raise ConversionError(
            f"{directory} has {tokenizer.vocabulary_size} ids, the model {config.vocab_size} rows: the model was not"
            " trained with this tokenizer"
        )
    return tokenizer


def tokenizer_files(tokenizer: Tokenizer, max_length: int) -> dict[str, bytes]:
    """What a Hugging Face directory needs of a tokenizer, by file name; `max_length` is the model's, in tokens.

    The model's own file (spm.model, or vocab.json and merges.txt), which older and slow tokenizers read,
    tokenizer.json, which `transformers` reads, tokenizer_config.json and special_tokens_map.json. Raises
    ConversionError when the packages `tokenizers` or `protobuf` are not installed.
    """
    named = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token"), SPECIAL_PIECES, strict=True))
    named["mask_token"] = MASK_PIECE
    of_tokenizer: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is; DebertaV2Tokenizer does not
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    own = {name: content for name, content in tokenizer.files().items() if name != METADATA_FILE}
    return {
        **own,
        FAST_FILE: fast_tokenizer(tokenizer).encode(),
        "tokenizer_config.json": _json(of_tokenizer | named),
        "special_tokens_map.json": _json(named),
    }


def fast_tokenizer(tokenizer: Tokenizer) -> str:
    """`tokenizer.json`: the same pieces from the same texts, [MASK] where a text says so, and the added tokens.

    Text beside [MASK] and added tokens is cut as if a word stood there: "very [MASK] to" gives ▁very [MASK] ▁to (the
    space before it is part of the hidden word), "very [MASK]." gives ▁very [MASK] . without a space sign. Released
    DeBERTa tokenizers put one before the full stop, which the model hardly saw in training; and stock
    `DebertaTokenizer` (V1), from vocab.json and merges.txt, leaves the space before [MASK] as a piece of its own,
    against its own description.

    What remains different: [PAD], [CLS], [SEP] and [UNK] written in a text are those tokens, as everywhere in
    `transformers`; and of sentencepiece, what launch/compare_tokenizers.py counts. Raises ConversionError when a
    package is not installed.
    """
    try:
        from tokenizers import AddedToken, processors

        is_byte_pair = isinstance(tokenizer.model, BytePairs)
        fast = _byte_pair(tokenizer.model) if isinstance(tokenizer.model, BytePairs) else _sentencepiece(tokenizer)
    except ImportError as error:
        package = "protobuf" if str(error.name).startswith("google") else error.name
        raise ConversionError(
            f"writing {FAST_FILE} needs {package}, which is not installed; pip install 'deberta-scale[peers]'"
        ) from None
    cls, sep = SPECIAL_PIECES[CLS_ID], SPECIAL_PIECES[SEP_ID]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=[(cls, CLS_ID), (sep, SEP_ID)]
    )
    fast.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in SPECIAL_PIECES])
    # Sentencepiece drops a space at the end of a text by itself, bytes do not.
    fast.add_special_tokens([AddedToken(MASK_PIECE, special=True, normalized=False, lstrip=is_byte_pair)])
    fast.add_tokens([AddedToken(token, normalized=False, lstrip=is_byte_pair) for token in tokenizer.added_tokens])
    for token in (MASK_PIECE, *tokenizer.added_tokens):
        expected = tokenizer.id_of_token[token]
        assert fast.token_to_id(token) == expected, f"{token!r} is {fast.token_to_id(token)}, not {expected}"
    return str(fast.to_str(pretty=True))


def _byte_pair(pieces: BytePairs) -> Any:
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    fast = FastTokenizer(models.BPE(vocab=pieces.ids, merges=pieces.merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return fast


def _sentencepiece(tokenizer: Tokenizer) -> Any:
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.processor.serialized_model_proto())
    normal_form = proto.normalizer_spec
    # A model without byte pieces, as released ones may be, gives [UNK] for a run of unknown characters.
    byte_fallback = any(piece.type == piece.BYTE for piece in proto.pieces)
    fast = FastTokenizer(
        models.Unigram(
            [(piece.piece, piece.score) for piece in proto.pieces], unk_id=UNK_ID, byte_fallback=byte_fallback
        )
    )
    steps: list[Any] = []
    if normal_form.remove_extra_whitespaces:
        steps = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    if normal_form.precompiled_charsmap:
        steps.insert(0, normalizers.Precompiled(normal_form.precompiled_charsmap))
    if "nfkc" in normal_form.name:
        # Precompiled looks at a base letter and its marks together and loses marks that its table does not know with
        # that letter; composed beforehand they are safe. Of all characters only this tilde is kept by nmt_nfkc.
        compose: list[Any] = [normalizers.NFKC()]
        if normal_form.name.startswith("nmt_"):
            there, back = (_FULLWIDTH_TILDE, _NONCHARACTER), (_NONCHARACTER, _FULLWIDTH_TILDE)
            compose = [normalizers.Replace(*there), *compose, normalizers.Replace(*back)]
        steps = [*compose, *steps]
    fast.normalizer = normalizers.Sequence(steps)
    prepend = "first" if normal_form.add_dummy_prefix else "never"
    cuts: list[Any] = [pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend, split=True)]
    if symbols := tokenizer.symbols:
        cuts.append(pre_tokenizers.Split(Regex(any_of(symbols).pattern), "isolated"))
    if byte_fallback:
        # "<0x41>" written in a text is six characters; here it would match the piece that stands for a byte
        cuts.append(pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous"))
    fast.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast


def official_vocabulary(pieces: BytePairs) -> bytes:
    """`bpe_encoder.bin` for the official `GPT2Tokenizer`, which adds the special pieces itself.

    Its `encoder` gives each piece a number and `dict_map` the order of those numbers, which sets the ids; GPT-2's own
    numbers are not needed, ours do.
    """
    import torch

    last = pieces.mask_id
    if last < pieces.size - 1:
        raise ConversionError(f"[MASK] is {last}, and pieces come after it; the official tokenizer puts it last")
    ordinary = pieces.vocabulary[len(SPECIAL_PIECES) : last]
    numbers = {piece: pieces.ids[piece] for piece in ordinary if pieces.can_be_made(piece)}
    content = {
        "encoder": numbers,
        "vocab": pieces.merges,
        "dict_map": [(str(numbers.get(piece, piece)), 1) for piece in ordinary],
    }
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
