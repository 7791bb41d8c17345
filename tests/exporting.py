"""Models in memory as sources of an export, for the tests of what is exported."""

from pathlib import Path
from typing import Any

import torch

from deberta_scale.config import ModelConfig
from deberta_scale.convert.huggingface import export
from deberta_scale.convert.source import Source, Weights
from deberta_scale.model.pretraining import PretrainingModel
from tests.rows import small_model_config

MODELS: dict[str, dict[str, Any]] = {
    "V3": {},
    "V2-XLarge, narrow words": {"conv_kernel_size": 3, "embedding_size": 24},
    "V1": {
        "share_att_key": False,
        "position_buckets": 0,
        "max_relative_positions": 20,
        "norm_rel_ebd": "none",
        "pos_att_type": ("c2p", "p2c"),
    },
    "c2p only": {"pos_att_type": ("c2p",)},
    "p2c only": {"pos_att_type": ("p2c",), "share_att_key": False, "conv_kernel_size": 5, "conv_act": "tanh"},
}
BASELINE: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "baseline": True,
}
CONFIGS = {name: small_model_config(vocab_size=640, **changes) for name, changes in MODELS.items()}
CONFIGS["baseline"] = ModelConfig(**BASELINE)
CONFIGS["baseline, narrow words"] = ModelConfig(**BASELINE, embedding_size=24)
"""One of each kind of model. Their vocabularies have room for the tests' tokenizer, and spare rows."""


def random_model(config: ModelConfig) -> PretrainingModel:
    """The same at each call, with biases and LayerNorms that do something."""
    torch.manual_seed(1)
    model = PretrainingModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def source_of(model: PretrainingModel, tokenizer: Path | None, **changes: Any) -> Source:
    tensors = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    weights = Weights(shapes, lambda name: tensors[name].clone())
    settings: dict[str, Any] = {"path": Path("random"), "kind": "model in memory", "weights": weights}
    return Source(**settings | {"config": model.config, "tokenizer": tokenizer} | changes)


def without(source: Source, *prefixes: str) -> Weights:
    """The weights of a source that lacks some."""
    kept = {name: shape for name, shape in source.weights.shapes.items() if not name.startswith(prefixes)}
    return Weights(kept, source.weights.read)


def export_all(parent: Path, tokenizer: Path) -> dict[str, Path]:
    """Every model of CONFIGS with random weights, exported into a directory of its name."""
    for name, config in CONFIGS.items():
        assert export(source_of(random_model(config), tokenizer), parent / name) == ()
    return {name: parent / name for name in CONFIGS}
