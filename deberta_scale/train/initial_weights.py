"""`init_from`: begin a new run with the weights of another model. Data position, optimizer and schedule are fresh."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from deberta_scale.config import ConfigError, ModelConfig
from deberta_scale.durable import digest_of
from deberta_scale.model.pretraining import PretrainingModel

_MAY_DIFFER = ("vocab_size", "max_position_embeddings", "initializer_range")
_TOKENIZER_FILES = ("spm.model", "vocab.json", "bpe_encoder.bin")


class StoredWeights(Protocol):
    """Tensors by the names of the pretraining model, read one at a time."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> torch.Tensor: ...


class InitialModel(Protocol):
    """What `deberta_scale.convert.formats.open_source` gives, whatever the format."""

    @property
    def path(self) -> Path: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def weights(self) -> StoredWeights: ...
    @property
    def tokenizer(self) -> Path | None: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


@torch.no_grad()
def take_weights(model: PretrainingModel, initial: InitialModel, data_tokenizer: Path) -> list[str]:
    """Copy every tensor of `initial` into `model`; returns what to tell: what was missing, and stays initialised.

    A longer vocabulary or position table keeps its fresh rows beyond those of `initial`. Raises ConfigError when the
    shapes differ otherwise, or when the data was tokenized with another tokenizer than the weights were trained with.
    """
    _check_shape(model.config, initial)
    notes = [f"weights from {initial.path}; data position, optimizer and schedule are fresh", *initial.notes]
    notes += _check_tokenizer(initial, data_tokenizer)
    for name, tensor in model.state_dict().items():
        if name not in initial.weights.shapes:
            notes.append(f"{name}: not in {initial.path}, initialised")
            continue
        given = initial.weights.read(name)
        if given.shape[1:] != tensor.shape[1:] or len(given) > len(tensor):
            raise ConfigError(f"{initial.path}: {name} has shape {tuple(given.shape)}, the model {tuple(tensor.shape)}")
        tensor[: len(given)] = given
        if len(given) < len(tensor):
            notes.append(f"{name}: rows {len(given)} to {len(tensor) - 1} are new, initialised")
    return notes


def _check_shape(config: ModelConfig, initial: InitialModel) -> None:
    ours, theirs = config.model_dump(), initial.config.model_dump()
    for tree, model in ((ours, config), (theirs, initial.config)):
        tree["attention_head_size"], tree["embedding_size"] = model.head_size, model.word_embedding_size
        tree["pos_att_type"] = sorted(tree["pos_att_type"])
        if not model.conv_kernel_size:
            del tree["conv_act"]
    differences = [
        f"  model.{key}: {initial.path} has {theirs.get(key)!r}, the config {ours.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and key not in _MAY_DIFFER and not key.endswith("dropout_prob")
    ]
    differences += [
        f"  model.{key}: {initial.path} has {theirs[key]}, the config only {ours[key]}"
        for key in ("vocab_size", "max_position_embeddings")
        if ours[key] < theirs[key]
    ]
    if differences:
        raise ConfigError("\n".join(["init_from holds a model of another shape:", *differences]))


def _check_tokenizer(initial: InitialModel, data_tokenizer: Path) -> list[str]:
    """The base vocabulary must be the same file; tokens added after it are allowed, their rows are new."""
    if initial.tokenizer is None:
        return [f"{initial.path} holds no tokenizer, so nothing tells whether data.shards was made with the right one"]
    for name in _TOKENIZER_FILES:
        theirs, ours = initial.tokenizer / name, data_tokenizer / name
        if theirs.is_file() and (not ours.is_file() or digest_of(theirs) != digest_of(ours)):
            raise ConfigError(
                f"init_from: {data_tokenizer} is not the tokenizer of {initial.path}; the model would read other words."
                f" Tokenize the text again with --tokenizer {initial.tokenizer}"
            )
        if theirs.is_file():
            return []
    return [f"{initial.tokenizer} holds no known tokenizer file, so it was not compared with that of data.shards"]
