"""Parameter groups of AdamW."""

from collections.abc import Iterable
from typing import Any

import torch


def parameter_groups(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Split parameters into decayed and not decayed ones, as the official optimizer does.

    Biases and LayerNorm weights are not decayed; everything else is, the embedding tables included.
    """
    decayed: list[torch.nn.Parameter] = []
    exempt: list[torch.nn.Parameter] = []
    for name, parameter in named_parameters:
        (exempt if name.endswith(("bias", "LayerNorm.weight")) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]
