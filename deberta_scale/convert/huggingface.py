"""Weights, model config and tokenizer → a directory that stock `transformers` loads, and `FillMask` fills masks with.

Stock `DebertaV2Model` has no enhanced mask decoder: it gets the whole encoder, and leaves the position table and
`lm_predictions.*`, which are in the file under their official names, to `deberta_scale.convert.fill_mask`.
"""

import importlib
import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import torch

from deberta_scale.config import ModelConfig
from deberta_scale.convert.consolidate import Weights
from deberta_scale.data.tokenizer import (
    CLS_ID,
    MASK_PIECE,
    MODEL_FILE,
    PAD_ID,
    SEP_ID,
    SPECIAL_PIECES,
    UNK_ID,
    Tokenizer,
)
from deberta_scale.durable import published_directory, refuse_used
from deberta_scale.model.pretraining import PretrainingModel

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_SAME_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "relative_attention",
    "position_biased_input",
    "share_att_key",
    "max_relative_positions",
    "conv_kernel_size",
    "conv_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
)
_RELATIVE_KEYS = ("pos_att_type", "share_att_key", "position_buckets", "max_relative_positions", "norm_rel_ebd")
_FULLWIDTH_TILDE, _NONCHARACTER = "\uff5e", "\ufdd0"


class ConversionError(ValueError):
    """A conversion that cannot be done. The message names the file or key, and what would work."""


def export(weights: Weights, config: ModelConfig, tokenizer_directory: Path, destination: Path) -> None:
    """Write `destination`: config.json, model.safetensors (fp32), spm.model, tokenizer.json and its companions.

    The directory appears whole or not at all; of the weights, one tensor at a time is in memory. Raises
    what `check_exportable` raises, and ConversionError when the weights are not those of `config`.
    """
    check_exportable(config, tokenizer_directory, destination)
    _check_names(weights, config)
    tokenizer = Tokenizer.load(tokenizer_directory)
    with published_directory(destination) as partial:
        _write_json(partial / CONFIG_FILE, hub_config(config))
        _write_weights(partial / WEIGHTS_FILE, weights)
        shutil.copyfile(tokenizer_directory / MODEL_FILE, partial / MODEL_FILE)
        (partial / "tokenizer.json").write_text(_fast_tokenizer(tokenizer), encoding="utf-8")
        named = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token"), SPECIAL_PIECES, strict=True))
        named["mask_token"] = MASK_PIECE
        _write_json(partial / "special_tokens_map.json", named)
        of_tokenizer = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is; DebertaV2Tokenizer does not
            "model_max_length": config.max_position_embeddings,
            "clean_up_tokenization_spaces": False,
        }
        _write_json(partial / "tokenizer_config.json", of_tokenizer | named)


def check_exportable(config: ModelConfig, tokenizer_directory: Path, destination: Path) -> None:
    """What can be known before the weights are read, which may take minutes.

    Raises ValueError when `destination` is in use, ConversionError when stock `transformers` cannot express the
    model, when the tokenizer is not the model's, or when a package is not installed; TokenizerError for an unusable
    tokenizer.
    """
    refuse_used(destination)
    for package, module in (("tokenizers", "tokenizers"), ("protobuf", "google.protobuf")):
        try:
            importlib.import_module(module)
        except ImportError:
            raise ConversionError(
                f"writing tokenizer.json needs {package}, which is not installed; pip install 'deberta-scale[peers]'"
            ) from None
    hub_config(config)
    tokenizer = Tokenizer.load(tokenizer_directory)
    if tokenizer.vocabulary_size > config.vocab_size:
        raise ConversionError(
            f"{tokenizer_directory} has {tokenizer.vocabulary_size} ids, the model {config.vocab_size} rows: the model"
            " was not trained with this tokenizer"
        )


def hub_config(config: ModelConfig) -> dict[str, Any]:
    """`config.json` for stock `DebertaV2Model`, every key of the model written out: the defaults there fit no release.

    Raises ConversionError for a shape that the stock class cannot take.
    """
    if config.num_attention_heads * config.head_size != config.hidden_size:
        raise ConversionError(
            f"model.num_attention_heads {config.num_attention_heads} x attention_head_size {config.head_size} is not"
            f" hidden_size {config.hidden_size}, and transformers' DebertaV2Model knows no other width"
        )
    # Without the mask decoder the stock class predicts masks only for a baseline; its head is as wide as the layers.
    stock_predicts = config.baseline and config.word_embedding_size == config.hidden_size
    return {
        "model_type": "deberta-v2",
        "architectures": ["DebertaV2ForMaskedLM" if stock_predicts else "DebertaV2Model"],
        "dtype": "float32",
        **{name: getattr(config, name) for name in _SAME_KEYS},
        "pos_att_type": "|".join(config.pos_att_type if config.relative_attention else ()),
        "position_buckets": config.position_buckets or -1,
        "norm_rel_ebd": config.norm_rel_ebd if config.relative_attention else "none",
        "embedding_size": config.word_embedding_size,
        "conv_groups": 1,
        "hidden_act": "gelu",
        "type_vocab_size": 0,
        "pad_token_id": PAD_ID,
        "pooler_hidden_size": config.hidden_size,
        "pooler_dropout": 0.0,
        "pooler_hidden_act": "gelu",
        "tie_word_embeddings": True,
        "legacy": False,  # the head's names: lm_predictions.lm_head
    }


def read_model_config(directory: Path) -> ModelConfig:
    """The model's shape from an exported `config.json`. Raises ConversionError when that is missing or another's."""
    path = directory / CONFIG_FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["model_type"] != "deberta-v2" or found["type_vocab_size"]:
            raise ValueError("not the config of an exported DeBERTa (model_type, type_vocab_size)")
        names = ModelConfig.model_fields.keys() & found.keys()
        settings = {name: found[name] for name in names} | {"baseline": not found["relative_attention"]}
        if found["embedding_size"] == found["hidden_size"]:
            del settings["embedding_size"]  # the default
        if settings["baseline"]:
            settings = {name: value for name, value in settings.items() if name not in _RELATIVE_KEYS}
        else:
            settings["pos_att_type"] = tuple(found["pos_att_type"].split("|"))
            settings["position_buckets"] = max(0, found["position_buckets"])
        return ModelConfig(**settings)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error.strerror}); give an exported directory") from None
    except KeyError as error:
        raise ConversionError(f"{path}: has no key {error}; give a directory that launch/convert.py wrote") from None
    except ValueError as error:
        raise ConversionError(f"{path}: {error}") from None


def model_on_meta(config: ModelConfig) -> PretrainingModel:
    """The model without values: names and shapes only, no memory."""
    with torch.device("meta"):
        return PretrainingModel(config)


def _check_names(weights: Weights, config: ModelConfig) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model_on_meta(config).state_dict().items()}
    for name in sorted(expected.keys() | weights.shapes.keys()):
        found, wanted = weights.shapes.get(name), expected.get(name)
        if found != wanted:
            raise ConversionError(
                f"{weights.checkpoint}: {name} has shape {found}, the run's config.yaml gives {wanted}; the checkpoint"
                " and the config do not belong together"
            )


def _write_weights(path: Path, weights: Weights) -> None:
    """The safetensors format: size of the header, header with all places, then the values end to end."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "step": str(weights.step)}}
    end = 0
    for name, shape in weights.shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, tensor in weights:
            file.write(tensor.numpy().data)


def _fast_tokenizer(tokenizer: Tokenizer) -> str:
    """`tokenizer.json`: the same pieces from the same texts as sentencepiece, and [MASK] where a text says so.

    Text beside [MASK] is cut as if a word stood there: "very [MASK] to" gives ▁very [MASK] ▁to (the space before it is
    part of the hidden word), "very [MASK]." gives ▁very [MASK] . without a space sign. Released DeBERTa tokenizers put
    one before the full stop, which the model hardly saw in training.

    What remains different: [PAD], [CLS], [SEP] and [UNK] written in a text are those tokens, as everywhere in
    `transformers`; and stacked combining marks out of canonical order are put in order.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as FastTokenizer

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.processor.serialized_model_proto())
    normal_form = proto.normalizer_spec
    fast = FastTokenizer(
        models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], unk_id=UNK_ID, byte_fallback=True)
    )
    steps = [
        normalizers.Precompiled(normal_form.precompiled_charsmap),
        normalizers.Strip(left=False, right=True),
        normalizers.Replace(Regex(" {2,}"), " "),
    ]
    if normal_form.name == "nmt_nfkc":
        # Precompiled looks at a base letter and its marks together and loses marks that its table does not know with
        # that letter; composed beforehand they are safe. Of all characters only this tilde is kept by nmt_nfkc.
        steps = [
            normalizers.Replace(_FULLWIDTH_TILDE, _NONCHARACTER),
            normalizers.NFKC(),
            normalizers.Replace(_NONCHARACTER, _FULLWIDTH_TILDE),
            *steps,
        ]
    fast.normalizer = normalizers.Sequence(steps)
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True),
            # "<0x41>" written in a text is seven characters; here it would match the piece that stands for a byte
            pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous"),
        ]
    )
    cls, sep = SPECIAL_PIECES[CLS_ID], SPECIAL_PIECES[SEP_ID]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=[(cls, CLS_ID), (sep, SEP_ID)]
    )
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in (*SPECIAL_PIECES, MASK_PIECE)]
    )
    assert fast.token_to_id(MASK_PIECE) == tokenizer.mask_id
    return str(fast.to_str(pretty=True))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
