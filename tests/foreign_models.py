"""Models in the forms that others save them in, for the tests of reading them."""

import json
from pathlib import Path
from typing import Any

import torch

from deberta_scale.config import ModelConfig
from deberta_scale.convert.official import official_config
from deberta_scale.convert.source import Source

State = dict[str, torch.Tensor]

V1_OFFICIAL: dict[str, Any] = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "relative_attention": True,
    "pos_att_type": "c2p|p2c",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "type_vocab_size": 0,
    "vocab_size": 640,
}
"""The keys of the released V1 config, which names no buckets, no shared keys and no norm of the relative table."""
V1_MODEL = ModelConfig(
    vocab_size=640,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_position_embeddings=64,
    max_relative_positions=64,
    pos_att_type=("c2p", "p2c"),
    share_att_key=False,
    position_buckets=0,
    norm_rel_ebd="none",
)


def write_official(directory: Path, state: dict[str, Any], config: ModelConfig | dict[str, Any]) -> Path:
    """pytorch_model.bin and model_config.json; returns the first."""
    directory.mkdir(exist_ok=True)
    keys = config if isinstance(config, dict) else official_config(config)
    (directory / "model_config.json").write_text(json.dumps(keys))
    torch.save(state, directory / "pytorch_model.bin")
    return directory / "pytorch_model.bin"


def in_v1_layout(state: State, heads: int) -> State:
    """Query, key and value interleaved by head, with the biases that V1 has; the key biases are lost."""
    result = {}
    for name, tensor in state.items():
        prefix, mark, rest = name.partition(".attention.self.")
        where = prefix + mark
        if rest == "query_proj.weight":
            parts = [
                state[f"{where}{kind}_proj.weight"].unflatten(0, (heads, -1)) for kind in ("query", "key", "value")
            ]
            result[f"{where}in_proj.weight"] = torch.cat(parts, dim=1).flatten(0, 1)
        elif rest in (
            old := {
                "query_proj.bias": "q_bias",
                "value_proj.bias": "v_bias",
                "pos_key_proj.weight": "pos_proj.weight",
                "pos_query_proj.weight": "pos_q_proj.weight",
                "pos_query_proj.bias": "pos_q_proj.bias",
            }
        ):
            result[where + old[rest]] = tensor
        elif rest not in ("key_proj.weight", "key_proj.bias", "value_proj.weight", "pos_key_proj.bias"):
            result[name] = tensor
    return result


def without_key_biases(state: State) -> State:
    """What reading the V1 layout gives back: zeros where it has nothing."""
    lost = ("self.key_proj.bias", "self.pos_key_proj.bias")
    return {name: torch.zeros_like(tensor) if name.endswith(lost) else tensor for name, tensor in state.items()}


def assert_holds(source: Source, expected: State) -> None:
    """Exactly these tensors, bit for bit, in fp32 and contiguous memory."""
    assert source.weights.shapes == {name: tuple(expected[name].shape) for name in source.weights.shapes}
    assert source.weights.shapes.keys() == expected.keys()
    for name, tensor in source.weights:
        assert tensor.dtype == torch.float32 and tensor.is_contiguous(), name
        assert torch.equal(tensor, expected[name]), name
