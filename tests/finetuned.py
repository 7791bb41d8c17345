"""Fine-tuned models with random weights, for the tests of what is exported and evaluated."""

from pathlib import Path
from typing import Any

import torch

from deberta_scale.convert.finetuned import description_of
from deberta_scale.convert.finetuned_source import FineTuned, head_on_meta
from deberta_scale.convert.source import Weights
from deberta_scale.finetune.tasks import task_named
from deberta_scale.model.heads import FineTuningModel
from tests.rows import small_model_config


def random_head(task_name: str, seed: int = 1, **changes: Any) -> FineTuningModel:
    """The same at each call, with biases and LayerNorms that do something."""
    config = small_model_config(**{"vocab_size": 640, "conv_kernel_size": 3} | changes)
    head = head_on_meta(config, description_of(task_named(task_name), 64)).to_empty(device="cpu")
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return head.eval()


def finetuned(
    task_name: str, head: FineTuningModel, tokenizer: Path, max_length: int = 64, **changes: Any
) -> FineTuned:
    """As a run hands it over to be exported."""
    tensors = head.state_dict()
    weights = Weights(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, lambda name: tensors[name].clone()
    )
    stride_tokens = max_length // 3 if task_name.startswith("squad") else None
    description = description_of(task_named(task_name), max_length, stride_tokens)
    return FineTuned(
        **{"config": head.config, "weights": weights, "description": description, "tokenizer": tokenizer} | changes
    )
