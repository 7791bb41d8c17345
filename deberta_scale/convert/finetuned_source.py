"""What a fine-tuned model is read into: its shape, its weights by the names of its head, and what the head answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch

from deberta_scale.config import ModelConfig
from deberta_scale.convert.hub_config import CONFIG_FILE, read_json, read_model_config
from deberta_scale.convert.source import ConversionError, Weights
from deberta_scale.convert.stored import SAFETENSORS_FILE, open_stored
from deberta_scale.finetune.heads import model_with_head
from deberta_scale.finetune.tasks import Head
from deberta_scale.model.heads import FineTuningModel

DESCRIPTION_FILE = "finetuning.json"
FORMAT_VERSION = 1
HEADS: tuple[Head, ...] = get_args(Head)


@dataclass(frozen=True)
class Description:
    """What `finetuning.json` says: what the head answers."""

    task: str
    head: Head
    labels: tuple[str, ...]
    """In the order of the outputs; empty where they are numbers or places."""
    max_length: int
    """Tokens of a row in fine-tuning, special ones counted."""
    stride_tokens: int | None = None
    """Of questions: tokens from one row of a context to the next; None for the default, and for other heads."""


@dataclass(frozen=True)
class FineTuned:
    """A model with a head whose weights are still in their files."""

    config: ModelConfig
    weights: Weights
    """By the names of the head's state dict: `deberta.…`, `pooler.dense.…`, `classifier.…`, `proj.…` and so on."""
    description: Description
    tokenizer: Path
    head_dropout: float = 0.0
    """Read again by whoever trains on."""
    results: Mapping[str, float] = field(default_factory=dict)
    """Measured, for the card: `validation accuracy`."""


def head_on_meta(config: ModelConfig, description: Description, head_dropout: float = 0.0) -> FineTuningModel:
    """The model without values: names and shapes only, no memory."""
    with torch.device("meta"):
        return model_with_head(description.head, config, len(description.labels), head_dropout)


def check_weights(config: ModelConfig, weights: Weights, description: Description, source: Path | str) -> None:
    """Raise ConversionError naming the first tensor of `source` that is missing, too many or of another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in head_on_meta(config, description).state_dict().items()}
    for name in sorted(expected.keys() | weights.shapes.keys()):
        if name not in weights.shapes:
            problem = f"{name} is missing"
        elif name not in expected:
            problem = f"{name} is no tensor of a {description.head} head on the encoder that the config describes"
        elif weights.shapes[name] != expected[name]:
            problem = f"{name} has shape {weights.shapes[name]}; config and labels give {expected[name]}"
        else:
            continue
        raise ConversionError(f"{source}: {problem}; weights, config and task do not belong together")


def is_finetuned(directory: Path) -> bool:
    """Whether `export` wrote it."""
    return (directory / DESCRIPTION_FILE).is_file()


def open_finetuned(directory: Path) -> FineTuned:
    """What `export` wrote. Raises ConversionError naming the file that is missing, damaged or does not fit."""
    description = _read_description(directory / DESCRIPTION_FILE)
    config = read_model_config(directory)
    dropout = read_json(directory / CONFIG_FILE).get("cls_dropout", 0.0)
    stored = open_stored(directory / SAFETENSORS_FILE)
    weights = Weights(stored.shapes, stored.read)
    check_weights(config, weights, description, directory)
    return FineTuned(config, weights, description, directory, dropout)


def _read_description(path: Path) -> Description:
    found = read_json(path)
    try:
        if found["format_version"] != FORMAT_VERSION:
            raise ConversionError(f"{path}: format_version is {found['format_version']!r}, expected {FORMAT_VERSION}")
        if found["head"] not in HEADS:
            raise ConversionError(f"{path}: head is {found['head']!r}, expected one of {', '.join(HEADS)}")
        described = Description(
            found["task"], found["head"], tuple(found["labels"]), found["max_length"], found["stride_tokens"]
        )
    except (KeyError, TypeError) as error:
        raise ConversionError(f"{path}: not what an export of a fine-tuned model writes ({error!r})") from None
    numbers = (described.max_length, described.stride_tokens or 0)
    if not all(isinstance(number, int) for number in numbers) or not all(isinstance(s, str) for s in described.labels):
        raise ConversionError(f"{path}: labels must be text, max_length and stride_tokens numbers; copy the file again")
    return described


def load_head(model: FineTuned) -> FineTuningModel:
    """The head with its weights in memory, fp32, ready to answer."""
    head = head_on_meta(model.config, model.description, model.head_dropout)
    head.load_state_dict(dict(model.weights), assign=True)
    return head.eval()
