"""A model's shape ↔ the JSON configs of other DeBERTas: `config.json` of Hugging Face, `model_config.json` of the
official code, which shares its keys and, where one is absent, its defaults."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deberta_scale.config import ModelConfig
from deberta_scale.convert.source import ConversionError
from deberta_scale.data.tokenizer import PAD_ID

CONFIG_FILE = "config.json"
RELATIVE_KEYS = ("pos_att_type", "share_att_key", "position_buckets", "max_relative_positions", "norm_rel_ebd")
"""What a baseline has none of."""
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
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_MODEL_TYPES = ("deberta", "deberta-v2")


def hub_config(config: ModelConfig) -> dict[str, Any]:
    """`config.json` for stock `DebertaV2Model`, every key of the model written out: the defaults there fit no release.

    Raises ConversionError for a shape that the stock class cannot take.
    """
    refuse_other_head_size(config, "transformers' DebertaV2Model")
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


def refuse_other_head_size(config: ModelConfig, whose: str) -> None:
    """Raise ConversionError for heads that do not make up the hidden size: in `whose` code they must."""
    if config.num_attention_heads * config.head_size != config.hidden_size:
        raise ConversionError(
            f"model.num_attention_heads {config.num_attention_heads} x attention_head_size {config.head_size} is not"
            f" hidden_size {config.hidden_size}, and {whose} knows no other width"
        )


def read_model_config(directory: Path) -> ModelConfig:
    """The model's shape from a `config.json`, ours or a released one. Raises ConversionError when the file cannot be
    read, or as `model_config`."""
    return model_config(read_json(directory / CONFIG_FILE), directory / CONFIG_FILE)


def read_json(path: Path) -> dict[str, Any]:
    """The keys of a config file. Raises ConversionError naming it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConversionError(f"{path}: not valid JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise ConversionError(f"{path}: expected the keys of a model, found a {type(found).__name__}")
    return found


def model_config(found: dict[str, Any], path: Path) -> ModelConfig:
    """The model's shape from the keys in file `path`; what is absent has the default of the official code.

    Raises ConversionError naming the key that tells of another architecture, or of a variant this model has not.
    """
    _refuse_others(found, path)
    same = found.keys() & set(_SAME_KEYS) & ModelConfig.model_fields.keys()
    settings: dict[str, Any] = {name: found[name] for name in same}
    settings |= {"baseline": not found.get("relative_attention", False)}
    settings["max_position_embeddings"] = positions = found.get("max_position_embeddings", 512)
    if found.get("embedding_size", found["hidden_size"]) != found["hidden_size"]:
        settings["embedding_size"] = found["embedding_size"]
    if found.get("attention_head_size") not in (None, found["hidden_size"] / found["num_attention_heads"]):
        settings["attention_head_size"] = found["attention_head_size"]
    if not settings.get("conv_kernel_size", 0) and settings.get("conv_act") not in ("gelu", "tanh"):
        settings.pop("conv_act", None)  # of no effect
    elif settings.get("conv_kernel_size", 0):
        settings.setdefault("conv_act", "tanh")
    if settings["baseline"]:
        settings = {name: value for name, value in settings.items() if name not in RELATIVE_KEYS}
    else:
        distances = found.get("max_relative_positions", -1)
        settings |= {
            "pos_att_type": _terms(found),
            "share_att_key": found.get("share_att_key", False),
            "position_buckets": max(0, found.get("position_buckets", -1)),
            "max_relative_positions": distances if distances >= 1 else positions,
            "norm_rel_ebd": _norm(found),
        }
    try:
        return ModelConfig(**settings)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        raise ConversionError(f"{path}: {key + ': ' if key else ''}{message}") from None


def _refuse_others(found: dict[str, Any], path: Path) -> None:
    """Of each key the values that this model can express."""
    model_type = found.get("model_type")
    if model_type not in (None, *_MODEL_TYPES):
        raise ConversionError(f"{path}: model_type is {model_type!r}, can be converted: {', '.join(_MODEL_TYPES)}")
    if model_type is None and "relative_attention" not in found:
        raise ConversionError(f"{path}: has neither model_type nor relative_attention, so it is no DeBERTa's config")
    for key in _REQUIRED:
        if not isinstance(found.get(key), int) or found[key] < 1:
            raise ConversionError(f"{path}: {key} is {found.get(key)!r}, expected a positive number")
    for key in ("max_position_embeddings", "type_vocab_size", "position_buckets", "max_relative_positions"):
        if not isinstance(found.get(key, 0), int):
            raise ConversionError(f"{path}: {key} is {found[key]!r}, expected a number")

    def refuse(key: str, why: str) -> None:
        raise ConversionError(f"{path}: {key} is {found.get(key)!r}: {why}")

    relative = bool(found.get("relative_attention", False))
    if found.get("type_vocab_size", 0) > 0:
        refuse("type_vocab_size", "token types are not supported, no released DeBERTa has them; expected 0")
    if found.get("hidden_act", "gelu") != "gelu":
        refuse("hidden_act", "only gelu is supported")
    if found.get("conv_groups", 1) != 1:
        refuse("conv_groups", "only 1 is supported")
    if found.get("talking_head"):
        refuse("talking_head", "talking heads are not supported")
    if relative == bool(found.get("position_biased_input", True)):
        refuse(
            "position_biased_input",
            f"with relative_attention {relative} that is neither DeBERTa (true, positions in the mask decoder: false)"
            " nor the BERT baseline (false, true)",
        )
    if relative and set(_terms(found)) not in ({"c2p"}, {"p2c"}, {"c2p", "p2c"}):
        refuse("pos_att_type", "expected c2p and/or p2c")
    if not relative and _terms(found):
        refuse("pos_att_type", "without relative_attention expected none, since it would only scale the scores")
    if relative and _norm(found) not in ("layer_norm", "none"):
        refuse("norm_rel_ebd", "expected layer_norm or none")


def _terms(found: dict[str, Any]) -> tuple[str, ...]:
    """`pos_att_type`, which is a list or `p2c|c2p`."""
    value = found.get("pos_att_type") or ()
    terms = str(value).split("|") if isinstance(value, str) else map(str, value)
    return tuple(term for term in (term.strip().lower() for term in terms) if term not in ("", "none"))


def _norm(found: dict[str, Any]) -> str:
    return str(found.get("norm_rel_ebd", "none")).strip().lower()
