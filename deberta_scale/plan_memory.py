"""Bytes that each rank needs: states by ZeRO stage, precision and offload, buffers, activations. Imports no torch.

Formulas, not measurements. ZeRO stage 1 divides the optimizer states by the ranks, 2 the gradients too, 3 the
parameters too (Rajbhandari et al. 2020, section 5); buffers are those of `train.buffers`, which the engine sets.
Activations are those of the reference attention; the compiled kernel, on CPUs, keeps and uses less. All sizes are bytes
of one rank unless said otherwise.
"""

import math
from dataclasses import dataclass

from deberta_scale.config import Config, ModelConfig
from deberta_scale.model.sizes import (
    BYTES_PER_WORKING_LOGIT,
    DECODER_PASSES,
    kept_logits_bytes,
    layer_parameters,
    parameter_count,
    pieces_at_once,
    relative_terms,
)
from deberta_scale.train.buffers import SWAPPED_BYTES_PER_PARAMETER, SWAPPED_TENSORS, Buffers, choose_buffers

FP32_BYTES = 4
INDEX_BYTES = 8
WORK_MATRICES = 3
"""fp32 score-sized temporaries alive at once in the backward of one attention: an estimate."""
STATE_BYTES = 3 * FP32_BYTES
"""Of a parameter in a checkpoint: weight and two moments, in fp32."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank; what is in `on_host` lies in the memory of the host, the rest on the device."""

    parameters: int
    gradients: int
    gradients_stay: bool
    """Whether they take their memory also between steps."""
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
    """Those kept for the loss's backward, and the range of the vocabulary that is worked on."""
    fp32_gradients: int
    """Made for the update, when the activations are gone, from those that backward left."""
    adam_work: int
    """Temporaries of torch's AdamW in the update, which is used on CPUs; no part of `device_peak`."""
    swapped: int
    """What an update has in memory of an optimizer that lies on disk."""
    save_copy: int
    """On the host, while a checkpoint is written: the rank's share of masters and moments. 0 when they lie on disk,
    from where they are written while training waits."""
    on_host: tuple[str, ...]
    disk: int
    """Masters, moments and gradients of an optimizer that lies on disk."""

    @property
    def device_peak(self) -> int:
        """States, and the larger of the forward-backward phase and the update."""
        in_backward = max(self.logits, self.recomputed + self.attention_work)
        working = self.gathered + self.reduce_bucket + self.activations + in_backward
        return self.states + max(working, self._on_device("fp32_gradients"))

    @property
    def states(self) -> int:
        """What the device holds all the time."""
        return self._on_device("parameters", "gradients", "optimizer")

    @property
    def cpu_peak(self) -> int:
        """Where the host is the device. Checkpoints are copied between steps."""
        update = self.states + self.fp32_gradients + self.adam_work
        save = self.states - (0 if self.gradients_stay else self.gradients) + self.save_copy
        return self.host + max(self.device_peak, update, save)

    @property
    def host(self) -> int:
        """What is offloaded to the host, at most at the same time."""
        return sum(getattr(self, name) for name in self.on_host)

    @property
    def host_peak(self) -> int:
        """Beside what the device holds: offloaded states, and the copy that is being written to a checkpoint."""
        return self.host + self.save_copy

    def _on_device(self, *names: str) -> int:
        return sum(getattr(self, name) for name in names if name not in self.on_host)


def memory_per_rank(config: Config, world_size: int) -> Memory:
    """States by stage, precision and offload; buffers; activations of one micro-batch."""
    engine, total = config.engine, parameter_count(config.model).total
    element, buffers = weight_bytes(config), choose_buffers(config.model, config.engine, world_size)
    share = math.ceil(total / world_size)
    gradient_share = share if engine.zero_stage >= 2 else total
    parameter_share = share if engine.zero_stage == 3 else total
    optimizer_share = share if engine.zero_stage >= 1 else total
    updated_at_once = min(optimizer_share, buffers.sub_group) if engine.zero_stage == 3 else optimizer_share
    to_disk = engine.offload_optimizer == "disk"
    on_host: list[str] = []
    if engine.offload_parameters != "none":
        on_host += ["parameters"]
    if to_disk:
        on_host += ["gradients", "fp32_gradients", "swapped"]
    elif engine.offload_optimizer != "none":
        on_host += ["optimizer", "fp32_gradients"] + (["gradients"] if engine.zero_stage >= 2 else [])
    kept, recomputed = activation_bytes(config, engine.activation_checkpointing != "none")
    return Memory(
        parameters=(parameter_share + _second_copy(config, total)) * element,
        gradients=gradient_share * element,
        gradients_stay=engine.zero_stage == 3,
        optimizer=0 if to_disk else optimizer_share * _optimizer_bytes(config),
        gathered=_gathered_bytes(config, buffers, world_size),
        reduce_bucket=0 if engine.zero_stage == 0 and world_size == 1 else buffers.reduce_bucket * element,
        activations=kept,
        recomputed=recomputed,
        attention_work=_attention_work_bytes(config),
        logits=_logits_bytes(config),
        fp32_gradients=0 if engine.zero_stage == 0 else updated_at_once * FP32_BYTES,
        adam_work=_adam_work_bytes(config, updated_at_once) if engine.offload_optimizer == "none" else 0,
        swapped=SWAPPED_TENSORS * _largest_sub_group(config, buffers, world_size) * FP32_BYTES if to_disk else 0,
        save_copy=0 if to_disk else share * STATE_BYTES,
        on_host=tuple(on_host),
        disk=share * SWAPPED_BYTES_PER_PARAMETER if to_disk else 0,
    )


def _adam_work_bytes(config: Config, updated_at_once: int) -> int:
    """Two temporaries as long as the longest vector that is updated: all that belongs together, or without ZeRO a
    parameter."""
    longest = parameter_count(config.model).word_embeddings if config.engine.zero_stage == 0 else updated_at_once
    return 2 * FP32_BYTES * longest


def activation_bytes(config: Config, checkpointing: bool) -> tuple[int, int]:
    """(kept from forward to backward, of the one layer recomputed in backward) for one micro-batch, without logits.

    Counts what autograd keeps of the reference model, tensor by tensor; a test compares it with autograd's own account.
    Dropout masks are counted in the activations' type, as on a CPU; on a GPU they take 1 byte.
    """
    model, length = config.model, config.data.sequence_length
    element, rows, predicted = weight_bytes(config), config.batch.micro_sequences, _predicted_per_row(config)
    hidden_state = rows * length * model.hidden_size * element
    dropout_mask = hidden_state if model.hidden_dropout_prob else 0
    table = _relative_rows(model) * model.hidden_size * element
    table_copies = table * (2 if model.hidden_dropout_prob else 0)  # the dropped table of each layer and its mask
    index = INDEX_BYTES * length if table else 0  # rows of the table for one query place and all keys
    layer = rows * _layer_bytes(model, element, length, length) + table_copies + index * length
    decoder_pass = rows * (_layer_bytes(model, element, predicted, length) + index * predicted)
    decoder = DECODER_PASSES * decoder_pass + hidden_state + table_copies

    embeddings = hidden_state + dropout_mask
    if model.word_embedding_size != model.hidden_size:
        embeddings += rows * length * model.word_embedding_size * element
    convolution = model.conv_kernel_size * hidden_state
    if convolution:
        convolution += dropout_mask + 2 * hidden_state  # inputs of the activation function and of LayerNorm
    head = rows * predicted * (model.hidden_size + 3 * model.word_embedding_size) * element
    outside = embeddings + convolution + head + table

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
    per_pair = FP32_BYTES + element + (1 if model.attention_probs_dropout_prob else 0)  # one byte: is it dropped?
    pairs = queries * keys * (heads * per_pair + 1)  # and one byte: may it look?
    return per_query * queries + per_key * keys + tables + by_row + pairs


def _attention_work_bytes(config: Config) -> int:
    length = config.data.sequence_length
    matrix = config.model.num_attention_heads * length * max(length, _relative_rows(config.model))
    return WORK_MATRICES * FP32_BYTES * matrix * config.batch.micro_sequences


def model_bytes_at_start(config: Config, world_size: int) -> int:
    """What a rank takes while it builds the model, before the optimizer: its own parameters twice while they are put
    end to end, and in stage 3 the largest one whole."""
    total, element = parameter_count(config.model).total, weight_bytes(config)
    if config.engine.zero_stage < 3:
        return 2 * total * element
    return (2 * math.ceil(total / world_size) + parameter_count(config.model).word_embeddings) * element


def _second_copy(config: Config, total: int) -> int:
    """Parameters of a rank in the copy that ZeRO++ keeps inside a group of ranks."""
    ranks = config.engine.hpz_partition_size
    return math.ceil(total / ranks) if ranks > 1 else 0


def _largest_sub_group(config: Config, buffers: Buffers, world_size: int) -> int:
    """Sub-groups end with the parameter that fills them; the word table, the first of all, may alone be longer."""
    count = parameter_count(config.model)
    word_table, share = math.ceil(count.word_embeddings / world_size), math.ceil(count.total / world_size)
    return max(word_table, min(share, buffers.sub_group + layer_parameters(config.model) // world_size))


def _gathered_bytes(config: Config, buffers: Buffers, world_size: int) -> int:
    """A parameter stays whole while it is used again within `buffers.live` others, so a smaller model is gathered as a
    whole. Nothing is copied when the only rank holds all. The tied word table has a whole gradient as well."""
    engine, word_table = config.engine, parameter_count(config.model).word_embeddings
    if engine.zero_stage < 3:
        return 0
    if world_size == 1 and engine.offload_parameters == "none":
        return word_table * weight_bytes(config) if engine.offload_optimizer == "disk" else 0
    return (buffers.live + word_table) * weight_bytes(config)


def _optimizer_bytes(config: Config) -> int:
    """Per parameter: fp32 master weight and two moments. Without ZeRO the weights are their own masters; its stages
    copy them in fp32 as well."""
    return (2 if config.engine.zero_stage == 0 else 3) * FP32_BYTES


def weight_bytes(config: Config) -> int:
    """Of a parameter that the model computes with, of its gradient, and of an element of an activation."""
    return FP32_BYTES if config.engine.precision == "fp32" else 2


def _relative_rows(model: ModelConfig) -> int:
    return 2 * model.relative_span if relative_terms(model) else 0


def _predicted_per_row(config: Config) -> float:
    return config.data.masking.probability * config.data.sequence_length


def _logits_bytes(config: Config) -> int:
    predicted = math.ceil(_predicted_per_row(config) * config.batch.micro_sequences)
    vocabulary = config.model.vocab_size
    pieces = min(vocabulary, pieces_at_once(predicted))
    kept = kept_logits_bytes(predicted, vocabulary, weight_bytes(config))
    return kept + predicted * pieces * BYTES_PER_WORKING_LOGIT
