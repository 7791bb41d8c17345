"""What a run will need, from its config and the number of ranks: memory, FLOPs, time, disk. Imports no torch.

Formulas, not measurements. ZeRO stage 1 divides the optimizer states by the ranks, 2 the gradients too, 3 the
parameters too (Rajbhandari et al. 2020, section 5); buffers are those of DeepSpeed 0.19's own defaults, which the
engine keeps. Activations are those of the reference attention. All sizes are bytes of one rank unless said otherwise.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deberta_scale.config import REDUCE_BUCKET_ELEMENTS, Config, ConfigError, ModelConfig
from deberta_scale.model.sizes import (
    DECODER_PASSES,
    ParameterCount,
    parameter_count,
    relative_terms,
    training_flops_per_sequence,
)

DEFAULT_TFLOPS_PER_RANK = 50.0
"""An assumption about the hardware, not a measurement: give the rate that `mfu` in a run's log amounts to."""
FP32_BYTES = 4
INDEX_BYTES = 8
MAX_LIVE_PARAMETERS = 10**9
"""DeepSpeed's stage3_max_live_parameters and stage3_max_reuse_distance."""
SUB_GROUP_PARAMETERS = 10**9
"""DeepSpeed's sub_group_size: stage 3 updates so many parameters of a rank at a time."""
LOGIT_BYTES = 3 * FP32_BYTES
"""Of each logit at the peak of the loss's backward: log-probability, its gradient, the logit's gradient, in fp32."""
WORK_MATRICES = 3
"""fp32 score-sized temporaries alive at once in the backward of one attention: an estimate."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank; what is in `on_host` lies in the memory of the host, the rest on the device."""

    parameters: int
    gradients: int
    optimizer: int
    """fp32 master weights where the engine keeps them apart, and two moments."""
    gathered: int
    """At most: whole parameters alive at once in ZeRO stage 3."""
    reduce_bucket: int
    activations: int
    """Kept from forward to backward."""
    recomputed: int
    """Of the one layer that is recomputed in backward; 0 without activation checkpointing."""
    attention_work: int
    logits: int
    fp32_gradients: int
    """Made for the update, when the activations are gone."""
    on_host: tuple[str, ...]

    @property
    def device_peak(self) -> int:
        """States, and the larger of the forward-backward phase and the update."""
        states = self._on_device("parameters", "gradients", "optimizer")
        in_backward = max(self.logits, self.recomputed + self.attention_work)
        working = self.gathered + self.reduce_bucket + self.activations + in_backward
        return states + max(working, self._on_device("fp32_gradients"))

    @property
    def host(self) -> int:
        return sum(getattr(self, name) for name in self.on_host)

    def _on_device(self, *names: str) -> int:
        return sum(getattr(self, name) for name in names if name not in self.on_host)


@dataclass(frozen=True)
class Plan:
    world_size: int
    parameters: ParameterCount
    accumulation_steps: int
    memory: Memory
    model_at_start: int
    """Bytes of the host that each rank takes while it builds the model, whole and in fp32, before it is divided."""
    activations_without_checkpointing: int
    activations_with_checkpointing: int
    """Kept ones and those of the layer that is recomputed."""
    fp32_scores_per_layer: int
    """Bytes of the fp32 score matrices that one layer keeps for backward, part of the activations."""
    flops_per_step: float
    """Over all ranks; recomputation not counted."""
    flops: float
    """Of the whole run."""
    tflops_per_rank: float
    tflops_assumed: bool
    """True when nobody gave a rate."""
    days: float
    checkpoint: int
    """Bytes on disk, over all ranks."""
    export: int
    """Bytes on disk of the weights alone, fp32."""
    data_tokens: int | None
    """Tokens of the training split; None when a directory of shards does not exist yet."""
    epochs: float | None
    """Over them, padding and special tokens left out."""


def make_plan(config: Config, world_size: int = 1, tflops_per_rank: float | None = None) -> Plan:
    """Derive everything. Raises ConfigError when the batch does not divide over the ranks, when the vocabulary is too
    small for the shards, or when a given number makes no sense."""
    if world_size < 1:
        raise ConfigError(f"--world-size {world_size}: a run has at least 1 rank")
    rate = DEFAULT_TFLOPS_PER_RANK if tflops_per_rank is None else tflops_per_rank
    if not (rate > 0.0 and math.isfinite(rate)):
        raise ConfigError(f"--tflops-per-rank {rate}: give a positive rate in TFLOP/s, for instance 50")
    accumulation = config.batch.accumulation_steps(world_size)
    parameters = parameter_count(config.model)
    flops_per_step = config.batch.sequences * training_flops_per_sequence(
        config.model, config.data.sequence_length, config.data.masking.probability, config.batch.micro_sequences
    )
    flops = flops_per_step * config.train.steps
    tokens = _data_tokens(config)
    weight_bytes = _weight_bytes(config)
    return Plan(
        world_size=world_size,
        parameters=parameters,
        accumulation_steps=accumulation,
        memory=memory_per_rank(config, world_size),
        model_at_start=parameters.total * FP32_BYTES,
        activations_without_checkpointing=sum(activation_bytes(config, checkpointing=False)),
        activations_with_checkpointing=sum(activation_bytes(config, checkpointing=True)),
        fp32_scores_per_layer=fp32_score_bytes(config),
        flops_per_step=flops_per_step,
        flops=flops,
        tflops_per_rank=rate,
        tflops_assumed=tflops_per_rank is None,
        days=flops / (rate * 1e12 * world_size) / 86400,
        # Stages 1 and 2 write the weights of the model beside master weights and moments, 0 and 3 once.
        checkpoint=parameters.total * (3 * FP32_BYTES + (weight_bytes if config.engine.zero_stage in (1, 2) else 0)),
        export=parameters.total * FP32_BYTES,
        data_tokens=tokens,
        epochs=None if tokens is None else config.tokens_per_step * config.train.steps / tokens,
    )


def memory_per_rank(config: Config, world_size: int) -> Memory:
    """States by stage, precision and offload; buffers; activations of one micro-batch."""
    engine, total = config.engine, parameter_count(config.model).total
    weight_bytes = _weight_bytes(config)
    share = math.ceil(total / world_size)
    gradient_share = share if engine.zero_stage >= 2 else total
    parameter_share = share if engine.zero_stage == 3 else total
    optimizer_share = share if engine.zero_stage >= 1 else total
    updated_at_once = min(optimizer_share, SUB_GROUP_PARAMETERS) if engine.zero_stage == 3 else optimizer_share
    on_host: list[str] = []
    if engine.offload_parameters != "none":
        on_host += ["parameters"]
    if engine.offload_optimizer != "none":
        on_host += ["optimizer", "fp32_gradients"] + (["gradients"] if engine.zero_stage >= 2 else [])
    kept, recomputed = activation_bytes(config, engine.activation_checkpointing != "none")
    return Memory(
        parameters=parameter_share * weight_bytes,
        gradients=gradient_share * weight_bytes,
        optimizer=optimizer_share * _optimizer_bytes(config),
        gathered=_gathered_bytes(config, total, world_size),
        reduce_bucket=_reduce_bucket_elements(config, total, world_size) * weight_bytes,
        activations=kept,
        recomputed=recomputed,
        attention_work=_attention_work_bytes(config),
        logits=math.ceil(_predicted_per_row(config) * config.batch.micro_sequences)
        * config.model.vocab_size
        * LOGIT_BYTES,
        fp32_gradients=0 if engine.precision == "fp32" else updated_at_once * FP32_BYTES,
        on_host=tuple(on_host),
    )


def activation_bytes(config: Config, checkpointing: bool) -> tuple[int, int]:
    """(kept from forward to backward, of the one layer recomputed in backward) for one micro-batch, without logits.

    Counts what autograd keeps of the reference model, tensor by tensor; a test compares it with autograd's own account.
    Dropout masks are counted in the activations' type, as on a CPU; on a GPU they take 1 byte.
    """
    model, length = config.model, config.data.sequence_length
    element, rows, predicted = _weight_bytes(config), config.batch.micro_sequences, _predicted_per_row(config)
    hidden_state = rows * length * model.hidden_size * element
    dropout_mask = hidden_state if model.hidden_dropout_prob else 0
    table = _relative_rows(model) * model.hidden_size * element
    table_copies = table * (2 if model.hidden_dropout_prob else 0)  # the dropped table of each layer and its mask
    layer = rows * _layer_bytes(model, element, length, length) + table_copies
    decoder = rows * DECODER_PASSES * _layer_bytes(model, element, predicted, length) + hidden_state + table_copies
    index = INDEX_BYTES * length if table else 0  # rows of the table for one place: one square for all, the decoder's
    decoder += index * rows * predicted

    embeddings = hidden_state + dropout_mask
    if model.word_embedding_size != model.hidden_size:
        embeddings += rows * length * model.word_embedding_size * element
    convolution = model.conv_kernel_size * hidden_state
    if convolution:
        convolution += dropout_mask + 2 * hidden_state  # inputs of the activation function and of LayerNorm
    head = rows * predicted * (model.hidden_size + 3 * model.word_embedding_size) * element
    outside = embeddings + convolution + head + table + index * length

    ordinary_layers = model.num_hidden_layers if model.baseline else model.num_hidden_layers - 1
    decoders = 0 if model.baseline else 1
    if checkpointing:
        recomputed = layer if model.baseline else max(layer, decoder)
        return math.ceil(outside + (ordinary_layers + decoders) * hidden_state), math.ceil(recomputed)
    return math.ceil(outside + ordinary_layers * layer + decoders * decoder), 0


def fp32_score_bytes(config: Config) -> int:
    """fp32 score matrices that one ordinary layer keeps for one micro-batch: the probabilities before they are
    rounded, and for each relative term the products with all rows of the table."""
    model, length = config.model, config.data.sequence_length
    columns = length + len(relative_terms(model)) * _relative_rows(model)
    return FP32_BYTES * config.batch.micro_sequences * model.num_attention_heads * length * columns


def _layer_bytes(model: ModelConfig, element: int, queries: float, keys: int) -> float:
    """Kept by one layer for one row whose `queries` places meet `keys` places."""
    hidden, heads = model.hidden_size, model.num_attention_heads
    width, table_rows = heads * model.head_size, _relative_rows(model)
    to_position, from_position = ("c2p" in relative_terms(model)), ("p2c" in relative_terms(model))
    # Input, the two LayerNorms' inputs and the first one's output; two dropout masks.
    residual_stream = (4 + (2 if model.hidden_dropout_prob else 0)) * hidden
    per_query = element * (residual_stream + width + 2 * model.intermediate_size)
    per_query += FP32_BYTES * width * (1 + to_position)  # each product of scores keeps its own fp32 operands
    per_key = element * width + FP32_BYTES * width * (1 + from_position)
    tables = FP32_BYTES * width * table_rows * (to_position + from_position)
    by_row = FP32_BYTES * heads * table_rows * (to_position * queries + from_position * keys)
    per_pair = FP32_BYTES + element * (2 if model.attention_probs_dropout_prob else 1)
    pairs = queries * keys * (heads * per_pair + 1)  # and one byte: may it look?
    return per_query * queries + per_key * keys + tables + by_row + pairs


def _attention_work_bytes(config: Config) -> int:
    length = config.data.sequence_length
    matrix = config.model.num_attention_heads * length * max(length, _relative_rows(config.model))
    return WORK_MATRICES * FP32_BYTES * matrix * config.batch.micro_sequences


def _gathered_bytes(config: Config, total: int, world_size: int) -> int:
    """A parameter stays whole while it is used again within MAX_LIVE_PARAMETERS others, so a smaller model is gathered
    as a whole. Nothing is copied when the only rank holds all. The tied word table has a whole gradient as well."""
    engine = config.engine
    if engine.zero_stage < 3 or (world_size == 1 and engine.offload_parameters == "none"):
        return 0
    word_table = parameter_count(config.model).word_embeddings
    return (min(total, MAX_LIVE_PARAMETERS) + word_table) * _weight_bytes(config)


def _reduce_bucket_elements(config: Config, total: int, world_size: int) -> int:
    if config.engine.zero_stage == 0 and world_size == 1:
        return 0
    return min(total, REDUCE_BUCKET_ELEMENTS)


def _optimizer_bytes(config: Config) -> int:
    """Per parameter: fp32 master weight and two moments. In fp32 the weights are their own master without ZeRO, and in
    stage 3 on the device; stages 1 and 2 copy them all the same."""
    engine = config.engine
    own_master = engine.zero_stage == 0 or (engine.zero_stage == 3 and engine.offload_optimizer == "none")
    return (2 if engine.precision == "fp32" and own_master else 3) * FP32_BYTES


def _weight_bytes(config: Config) -> int:
    return FP32_BYTES if config.engine.precision == "fp32" else 2


def _relative_rows(model: ModelConfig) -> int:
    return 2 * model.relative_span if relative_terms(model) else 0


def _predicted_per_row(config: Config) -> float:
    return config.data.masking.probability * config.data.sequence_length


def _data_tokens(config: Config) -> int | None:
    """Tokens of the training split, or of those of a mixture together, by their manifests; None when one of the
    directories does not exist. Raises ConfigError."""
    directories = config.data.directories
    if not all(directory.exists() for directory in directories.values()):
        return None
    return sum(_tokens_of(key, directory, config.model.vocab_size) for key, directory in directories.items())


def _tokens_of(key: str, directory: Path, model_vocab_size: int) -> int:
    path = directory / "train" / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tokens, vocabulary_size = int(manifest["tokens"]), int(manifest["vocabulary_size"])
    except OSError as error:
        raise ConfigError(
            f"{key} {directory}: {path} cannot be read ({error.strerror}); give a directory written by"
            " data_prep/tokenize_corpus.py"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a manifest of data_prep/tokenize_corpus.py ({error!r})") from None
    if model_vocab_size < vocabulary_size:
        raise ConfigError(
            f"model.vocab_size {model_vocab_size} is too small for the tokens of {directory}; give {vocabulary_size} or"
            " more"
        )
    if tokens < 1:
        raise ConfigError(f"{path}: the training split holds no tokens; give more text to data_prep/tokenize_corpus.py")
    return tokens
