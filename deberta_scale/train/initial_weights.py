"""The weights that a run begins with: fresh, or with `init_from` those of another model; then data position, optimizer
and schedule are fresh all the same."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from deberta_scale.config import Config, ConfigError, ModelConfig
from deberta_scale.durable import digest_of
from deberta_scale.model.initial import InitialWeights
from deberta_scale.model.pretraining import PretrainingModel
from deberta_scale.train import distributed
from deberta_scale.train.engine_vectors import (
    begin_update,
    finish_update,
    in_memory,
    stretch_of,
    update_trained_weights,
    vectors_of,
)

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


Stretches = Callable[[str, int, int], torch.Tensor]
"""By name, start and size: values of a flattened parameter, fp32, on the host."""


def initial_weights(
    config: Config, model: PretrainingModel, open_initial: Callable[[Path], InitialModel] | None
) -> tuple[Stretches, list[str]]:
    """What `model`, which may lie on the meta device, begins with, and what to tell people about it. `init_from` is
    opened by `open_initial`. Raises ConfigError as `taken_weights`.
    """
    fresh = InitialWeights(model, config.model.initializer_range, config.seed)
    if config.init_from is None:
        return fresh, []
    assert open_initial is not None
    return taken_weights(model, fresh, open_initial(config.init_from), config.data.tokenizer_dir)


@torch.no_grad()
def set_weights(engine: Any, weights: Stretches) -> None:
    """Fill the fp32 masters of an engine and bring them to the parameters, on all ranks together. Each rank asks for
    what it holds, one parameter at a time.

    Raises ValueError on all ranks when one cannot read.
    """
    begin_update(engine)
    distributed.together(lambda: _fill(engine, weights))
    finish_update(engine)


def _fill(engine: Any, weights: Stretches) -> None:
    for vector in vectors_of(engine):
        with in_memory(engine, vector, changed=True):
            for piece in vector.pieces:
                stretch_of(vector.master, piece).copy_(weights(piece.name, piece.start, piece.size))
            update_trained_weights(engine, vector)


def taken_weights(
    model: PretrainingModel, fresh: Stretches, initial: InitialModel, data_tokenizer: Path
) -> tuple[Stretches, list[str]]:
    """Those of `initial`, read one parameter at a time, and `fresh` ones for what it lacks, which the notes name.

    A longer vocabulary or position table has its fresh rows beyond those of `initial`. Raises ConfigError when the
    shapes differ otherwise, or when the data was tokenized with another tokenizer than the weights were trained with.
    """
    _check_shape(model.config, initial)
    notes = [f"weights from {initial.path}; data position, optimizer and schedule are fresh", *initial.notes]
    notes += _check_tokenizer(initial, data_tokenizer)
    shapes = initial.weights.shapes
    for name, parameter in model.named_parameters():
        given, wanted = shapes.get(name), tuple(parameter.shape)
        if given is None:
            notes.append(f"{name}: not in {initial.path}, initialised")
        elif given[1:] != wanted[1:] or given[0] > wanted[0]:
            raise ConfigError(f"{initial.path}: {name} has shape {given}, the model {wanted}")
        elif given[0] < wanted[0]:
            notes.append(f"{name}: rows {given[0]} to {wanted[0] - 1} are new, initialised")

    def stretch(name: str, start: int, size: int) -> torch.Tensor:
        known = initial.weights.read(name).view(-1)[start : start + size] if name in shapes else torch.empty(0)
        if len(known) == size:
            return known
        return torch.cat([known, fresh(name, start + len(known), size - len(known))])

    return stretch, notes


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
