"""The names and layouts of other DeBERTa files → those of our `PretrainingModel`, which are the official ones.

Nothing is read here but what must be compared: a tensor cut out of another reads that one when it is asked for.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from deberta_scale.config import ModelConfig
from deberta_scale.convert.source import ConversionError, Weights, shapes_of
from deberta_scale.convert.stored import Stored

_HEAD = "lm_predictions.lm_head."
_LEGACY_HEAD = {
    "cls.predictions.transform.dense.weight": f"{_HEAD}dense.weight",
    "cls.predictions.transform.dense.bias": f"{_HEAD}dense.bias",
    "cls.predictions.transform.LayerNorm.weight": f"{_HEAD}LayerNorm.weight",
    "cls.predictions.transform.LayerNorm.bias": f"{_HEAD}LayerNorm.bias",
    "cls.predictions.bias": f"{_HEAD}bias",
}
"""transformers with `legacy: true`."""
_LEGACY_TIED = {
    "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": f"{_HEAD}bias",
}
_V1_ATTENTION = {
    "q_bias": "query_proj.bias",
    "v_bias": "value_proj.bias",
    "pos_proj.weight": "pos_key_proj.weight",
    "pos_q_proj.weight": "pos_query_proj.weight",
    "pos_q_proj.bias": "pos_query_proj.bias",
}
"""Within `attention.self.` of a V1 layer; `in_proj.weight` is cut into three."""
_V1_WITHOUT_BIAS = {"in_proj.weight": "key_proj.bias", "pos_proj.weight": "pos_key_proj.bias"}
_DROPPED = {
    "mask_predictions": "the head that finds replaced tokens (V3), which masked language modelling does not use",
    "pooler": "of a fine-tuned task",
    "classifier": "of a fine-tuned task",
    "qa_outputs": "of a fine-tuned task",
    "proj": "of a fine-tuned task",
}
"""Heads by the first part of their names."""
_TABLES = tuple(f"deberta.embeddings.{name}_embeddings" for name in ("word", "position"))


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def by_official_name(
    stored: Stored, config: ModelConfig, generator: Stored | None = None
) -> tuple[Weights, tuple[str, ...]]:
    """The weights under official names, in the model's order, and what the user should know of how they came about.

    `generator` is the V3 generator that belongs to a discriminator whose embeddings are stored as differences from it.
    Raises ConversionError naming the first tensor that the model has no place for.
    """
    notes: list[str] = []
    found = _with_common_prefix(stored, generator, notes)
    found = _without_other_heads(found, notes)
    found = _with_one_language_head(found, stored, notes)
    found = _with_split_attention(found, config, stored, notes)
    if config.baseline and "deberta.encoder.LayerNorm.weight" in found:
        found = {name: tensor for name, tensor in found.items() if not name.startswith("deberta.encoder.LayerNorm.")}
        notes.append("deberta.encoder.LayerNorm dropped: it is for relative positions, which this baseline has not")
    expected = shapes_of(config)
    left_over = [name for name in found if name not in expected]
    if left_over:
        others = f", nor {len(left_over) - 1} more" if len(left_over) > 1 else ""
        raise ConversionError(
            f"{stored.path}: {left_over[0]} is no tensor of the model that its config describes{others}; is the config"
            " that of another model?"
        )
    tensors = {name: found[name] for name in expected if name in found}
    weights = Weights({name: tensor.shape for name, tensor in tensors.items()}, lambda name: tensors[name].read())
    return weights, (*notes, *_missing(expected, tensors, config))


_Found = dict[str, _Tensor]


def _tensor(stored: Stored, name: str) -> _Tensor:
    return _Tensor(stored.shapes[name], lambda: stored.read(name))


def _with_common_prefix(stored: Stored, generator: Stored | None, notes: list[str]) -> _Found:
    """Everything of the encoder under `deberta.`; of a V3 pair the discriminator, its embeddings made whole."""
    parts: dict[str, _Found] = {"": {}, "generator": {}}
    is_pair = is_generator_with_discriminator(stored)
    for raw in stored.shapes:
        part, name = "", raw
        if is_pair:
            first, _, name = raw.partition(".")
            part = "generator" if first == "generator" else ""
        name = re.sub(r"^bert\.", "deberta.", name)
        name = re.sub(r"^(embeddings|encoder)\.", r"deberta.\1.", name)
        if name in parts[part]:
            raise ConversionError(f"{stored.path}: holds {name} twice, also as {raw}")
        if name != "deberta.embeddings.position_ids":  # the numbers 0, 1, 2, ..., which old transformers saved
            parts[part][name] = _tensor(stored, raw)
    if is_pair:
        notes.append("generator.* dropped: of the pair that was trained together, the discriminator is taken")
    elif generator is not None:
        parts["generator"] = _with_common_prefix(generator, None, [])
    _add_differences(parts[""], parts["generator"], stored, is_pair, notes)
    return parts[""]


def is_generator_with_discriminator(stored: Stored) -> bool:
    """Whether the file is of official RTD training, with both models in it."""
    return any(name.startswith("discriminator.") for name in stored.shapes)


def stores_differences(stored: Stored) -> bool:
    """Whether a V3 discriminator's embeddings can be had only together with its generator's."""
    tables = {name.rpartition(".")[0] for name in stored.shapes if name.endswith("_embeddings._weight")}
    return any(f"{table}.weight" not in stored.shapes for table in tables)


def _add_differences(own: _Found, generators: _Found, stored: Stored, is_pair: bool, notes: list[str]) -> None:
    """GDES (V3): a table's `_weight` is its difference from the generator's table, and official training sets `weight`
    to their sum before each forward pass. A discriminator alone keeps that sum beside `_weight`; in a file of both
    models it lags one update behind, and is made anew."""
    for table in _TABLES:
        difference, whole = own.pop(f"{table}._weight", None), f"{table}.weight"
        if difference is None:
            continue
        if whole in own and not is_pair:
            notes.append(f"{table}: `weight` taken, which holds the generator's table + `_weight` (GDES)")
            continue
        if whole not in generators:
            raise ConversionError(
                f"{stored.path}: {table}._weight is a difference from the generator's table (GDES), which is not there;"
                " put pytorch_model.generator.bin beside it"
            )
        base = generators[whole]
        if base.shape != difference.shape:
            raise ConversionError(
                f"{stored.path}: {table}._weight has shape {difference.shape}, the generator's table {base.shape}; they"
                " do not belong together"
            )

        def add(base: _Tensor = base, difference: _Tensor = difference) -> torch.Tensor:
            return base.read().add_(difference.read())

        own[whole] = _Tensor(base.shape, add)
        notes.append(f"{table}: sum of the generator's table and `_weight` (GDES), in fp32")


def _without_other_heads(found: _Found, notes: list[str]) -> _Found:
    present = sorted({name.partition(".")[0] for name in found} & _DROPPED.keys())
    notes += [f"{head}.* dropped: {_DROPPED[head]}" for head in present]
    return {name: tensor for name, tensor in found.items() if name.partition(".")[0] not in present}


def _with_one_language_head(found: _Found, stored: Stored, notes: list[str]) -> _Found:
    legacy = {name for name in found if name.startswith("cls.predictions.")}
    has_official = any(name.startswith(_HEAD) for name in found)
    if legacy and has_official:
        notes.append("cls.predictions.* dropped: transformers' own head, beside the official lm_predictions.*")
        return {name: tensor for name, tensor in found.items() if name not in legacy}
    result = {_LEGACY_HEAD.get(name, name): tensor for name, tensor in found.items() if name not in _LEGACY_TIED}
    for decoder, tied in _LEGACY_TIED.items():
        if decoder in found and tied not in result:
            result[tied] = found[decoder]
        elif decoder in found and not torch.equal(found[decoder].read(), result[tied].read()):
            raise ConversionError(
                f"{stored.path}: {decoder} is not {tied}, and this model's head has no table of its own; convert the"
                " encoder alone, saved from AutoModel"
            )
    return result


def _with_split_attention(found: _Found, config: ModelConfig, stored: Stored, notes: list[str]) -> _Found:
    result: _Found = {}
    zeros = 0
    for name, tensor in found.items():
        prefix, mark, rest = name.partition(".attention.self.")
        if mark and rest == "in_proj.weight":
            result |= _split(tensor, prefix + mark, config, stored)
        else:
            result[prefix + mark + _V1_ATTENTION.get(rest, rest) if mark else name] = tensor
        bias = prefix + mark + _V1_WITHOUT_BIAS.get(rest, "") if mark else ""
        if rest in _V1_WITHOUT_BIAS and bias not in found:
            result[bias] = _zeros(config.num_attention_heads * config.head_size)
            zeros += 1
    if zeros:
        notes.append("V1 layout: in_proj cut into query, key and value; key biases, which V1 has not, are zero")
    return result


def _split(tensor: _Tensor, prefix: str, config: ModelConfig, stored: Stored) -> _Found:
    """[heads][query | key | value][head size] rows, as V1 stores them, into three."""
    heads, size = config.num_attention_heads, config.head_size
    if tensor.shape[:1] != (3 * heads * size,):
        raise ConversionError(
            f"{stored.path}: {prefix}in_proj.weight has shape {tensor.shape}, the config gives 3 x"
            f" num_attention_heads {heads} x {size} rows"
        )

    def part(number: int) -> Callable[[], torch.Tensor]:
        return lambda: tensor.read().unflatten(0, (heads, 3, size))[:, number].flatten(0, 1).contiguous()

    shape = (heads * size, *tensor.shape[1:])
    names = ("query_proj", "key_proj", "value_proj")
    return {f"{prefix}{name}.weight": _Tensor(shape, part(number)) for number, name in enumerate(names)}


def _zeros(size: int) -> _Tensor:
    return _Tensor((size,), lambda: torch.zeros(size))


def _missing(expected: dict[str, Any], tensors: _Found, config: ModelConfig) -> list[str]:
    notes = []
    if not config.baseline and "deberta.embeddings.position_embeddings.weight" not in tensors:
        notes.append("no table of absolute positions in it: the mask decoder needs one to fill masks")
    if not any(name.startswith(_HEAD) for name in tensors):
        notes.append("no masked language modelling head (lm_predictions) in it: the encoder alone")
    return notes
