"""What every format is read into, and every other is written from: a model's shape, its weights by official name, its
tokenizer, and what is known of its making."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from deberta_scale.config import ModelConfig
from deberta_scale.model.pretraining import PretrainingModel


class ConversionError(ValueError):
    """A conversion that cannot be done. The message names the file or key, and what would work."""


@dataclass(frozen=True)
class Weights:
    """Tensors that are still in their files, by the names of `PretrainingModel`'s state dict."""

    shapes: dict[str, tuple[int, ...]]
    """By name, in the order in which they are read. A tied parameter comes once, under its first name."""
    read: Callable[[str], torch.Tensor]
    """One tensor by name, in fp32 and in memory of its own."""

    @property
    def num_parameters(self) -> int:
        return sum(map(math.prod, self.shapes.values()))

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, fp32 tensor), made one at a time."""
        for name in self.shapes:
            yield name, self.read(name)


@dataclass(frozen=True)
class Source:
    """A model, in whatever format it lies on disk."""

    path: Path
    kind: str
    """For people: `checkpoint`, `Hugging Face directory`, `official checkpoint`, `deberta-scale directory`."""
    config: ModelConfig
    weights: Weights
    tokenizer: Path | None
    """Directory that holds the tokenizer's files; None when the source has none."""
    notes: tuple[str, ...] = ()
    """What the user should know: what was missing, dropped or materialised on the way."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Of the run that made it, for the model card: `step`, and what `log.jsonl` and `config.yaml` tell."""

    def missing(self) -> tuple[str, ...]:
        """Names of the pretraining model that the source has no weights for: its decoder or head, at most."""
        return tuple(name for name in shapes_of(self.config) if name not in self.weights.shapes)

    def check(self) -> None:
        """Raise ConversionError naming the first tensor that does not belong to the config, has another shape, or is
        missing. The position table of the mask decoder and the head may be missing; half a head may not."""
        expected, found = shapes_of(self.config), self.weights.shapes
        has_head = any(name.startswith("lm_predictions.") for name in found)
        for name in sorted(expected.keys() | found.keys()):
            if name not in found:
                is_head = name.startswith("lm_predictions.")
                is_decoder = name == "deberta.embeddings.position_embeddings.weight" and not self.config.baseline
                if is_decoder or (is_head and not has_head):
                    continue
                problem = f"{name} is missing"
            elif name not in expected:
                problem = f"{name} is no tensor of the model that the config describes"
            elif found[name] != expected[name]:
                problem = f"{name} has shape {found[name]}, the config gives {expected[name]}"
            else:
                continue
            raise ConversionError(f"{self.path}: {problem}; weights and config do not belong together")


def model_on_meta(config: ModelConfig) -> PretrainingModel:
    """The model without values: names and shapes only, no memory."""
    with torch.device("meta"):
        return PretrainingModel(config)


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the pretraining model, in its order."""
    return {name: tuple(tensor.shape) for name, tensor in model_on_meta(config).state_dict().items()}
