"""Parameter groups of AdamW."""

import re
from collections.abc import Iterable
from typing import Any

import torch

FRACTION = "fraction"
"""Key of a group: of the learning rate, what its parameters get."""
_LAYER = re.compile(r"\bencoder\.layer\.(\d+)\.")
_HEAD = 10**9


def parameter_groups(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]], weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Split parameters into decayed and not decayed ones, as the official optimizer does, and with a `layer_decay`
    below 1 by layer as well.

    Biases and LayerNorm weights are not decayed; everything else is, the embedding tables included. A layer's fraction
    of the learning rate is `layer_decay` times that of the layer above; the head is above all layers, the embeddings,
    those of relative positions included, are below.
    """
    members: dict[tuple[int, float], list[torch.nn.Parameter]] = {}
    for name, parameter in named_parameters:
        height = 0 if layer_decay == 1.0 else _height(name)
        decay = 0.0 if name.endswith(("bias", "LayerNorm.weight")) else weight_decay
        members.setdefault((height, decay), []).append(parameter)
    head = 1 + max((height for height, _ in members if height != _HEAD), default=0)
    return [
        {"params": params, "weight_decay": decay, FRACTION: layer_decay ** (head - min(height, head))}
        for (height, decay), params in sorted(members.items(), key=lambda item: (item[0][0], -item[0][1]))
    ]


def _height(name: str) -> int:
    """0 for embeddings, the number of the layer from 1 on, _HEAD for what stands on the encoder."""
    if layer := _LAYER.search(name):
        return int(layer[1]) + 1
    if "encoder.conv." in name:  # beside the first layer
        return 1
    return 0 if "deberta." in name else _HEAD
