"""The whole configuration: one schema, never mutated. `config_file` reads it.

Imports no torch, so that a config is checked in milliseconds on a login node.
"""

import math
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from deberta_scale.config_data import (
    ConfigError,
    DataConfig,
    Fraction,
    MaskingConfig,
    MixtureConfig,
    PositiveInt,
    Section,
)
from deberta_scale.config_engine import EngineConfig

__all__ = [
    "BatchConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EngineConfig",
    "GuardsConfig",
    "MaskingConfig",
    "MixtureConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "TrainConfig",
    "describe",
]


class ModelConfig(Section):
    """Shape of the encoder. Keys are those of the released `config.json` files; defaults are V3-base's."""

    vocab_size: PositiveInt
    """Rows of the embedding table: at least the tokenizer's pieces + 1 for [MASK]; spare rows are allowed."""
    hidden_size: PositiveInt = 768
    num_hidden_layers: Annotated[int, Field(ge=2)] = 12
    num_attention_heads: PositiveInt = 12
    attention_head_size: PositiveInt | None = None
    """Default: hidden_size / num_attention_heads."""
    intermediate_size: PositiveInt = 3072
    embedding_size: PositiveInt | None = None
    """Width of the word table; default hidden_size. When smaller, a projection follows the lookup."""
    max_position_embeddings: PositiveInt = 512
    baseline: bool = False
    """True gives BERT/RoBERTa: absolute positions at the input, no relative terms, no enhanced mask decoder."""
    pos_att_type: tuple[Literal["c2p", "p2c"], ...] = ("p2c", "c2p")
    share_att_key: bool = True
    """True (V2/V3): the content projections also project the relative table. False (V1): projections of its own."""
    position_buckets: Annotated[int, Field(ge=0)] = 256
    """Log buckets on each side of distance 0 (V2/V3); 0 means linear distances (V1)."""
    max_relative_positions: PositiveInt = 512
    """Distances are clamped to +-(this - 1)."""
    norm_rel_ebd: Literal["layer_norm", "none"] = "layer_norm"
    conv_kernel_size: Annotated[int, Field(ge=0)] = 0
    """Width of the convolution beside the first layer (3 in V2-XLarge/XXLarge); 0 means none."""
    conv_act: Literal["gelu", "tanh"] = "gelu"
    hidden_dropout_prob: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    attention_probs_dropout_prob: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    initializer_range: Annotated[float, Field(gt=0.0)] = 0.02
    layer_norm_eps: Annotated[float, Field(gt=0.0)] = 1e-7

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        if self.attention_head_size is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads};"
                " change one of them or give attention_head_size"
            )
        if self.conv_kernel_size and self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size {self.conv_kernel_size} is even; an odd width keeps the length")
        if self.position_buckets and self.position_buckets // 2 >= self.max_relative_positions - 1:
            raise ValueError(
                f"position_buckets {self.position_buckets} leaves no room for log buckets below"
                f" max_relative_positions {self.max_relative_positions}; give at most"
                f" {2 * (self.max_relative_positions - 2)}, or 0 for linear distances"
            )
        if len(set(self.pos_att_type)) != len(self.pos_att_type):
            raise ValueError(f"pos_att_type {list(self.pos_att_type)} names a term twice")
        relative_keys = {"pos_att_type", "share_att_key", "position_buckets", "max_relative_positions", "norm_rel_ebd"}
        useless = sorted(relative_keys & self.model_fields_set) if self.baseline else []
        if useless:
            raise ValueError(f"baseline: true has no relative positions, so {', '.join(useless)} would have no effect")
        if not self.baseline and not self.pos_att_type:
            raise ValueError("pos_att_type is empty; give c2p and/or p2c, or baseline: true")
        return self

    @property
    def head_size(self) -> int:
        return self.attention_head_size or self.hidden_size // self.num_attention_heads

    @property
    def word_embedding_size(self) -> int:
        return self.embedding_size or self.hidden_size

    @property
    def relative_attention(self) -> bool:
        return not self.baseline

    @property
    def position_biased_input(self) -> bool:
        return self.baseline

    @property
    def relative_span(self) -> int:
        """Half the rows of the relative table: distances map to [0, 2 * span)."""
        return self.position_buckets or self.max_relative_positions


class BatchConfig(Section):
    sequences: PositiveInt
    """Sequences per optimizer step, over all ranks and accumulation steps."""
    micro_sequences: PositiveInt
    """Sequences per rank and forward pass. Does not change the result, only memory and speed."""

    def accumulation_steps(self, world_size: int) -> int:
        """Forward passes per optimizer step on each rank. Raises ConfigError when the numbers do not divide."""
        per_pass = self.micro_sequences * world_size
        if self.sequences % per_pass:
            fits = [n for n in range(1, self.sequences // world_size + 1) if self.sequences % (n * world_size) == 0]
            advice = (
                f"batch.micro_sequences that fit: {', '.join(map(str, fits))}"
                if fits
                else f"batch.sequences must be a multiple of the {world_size} ranks"
            )
            raise ConfigError(
                f"batch.sequences {self.sequences} is not a multiple of batch.micro_sequences {self.micro_sequences}"
                f" x {world_size} ranks = {per_pass}; {advice}"
            )
        return self.sequences // per_pass


class OptimizerConfig(Section):
    """AdamW with bias correction; no decay on biases and LayerNorm (paper, table 8)."""

    learning_rate: Annotated[float, Field(gt=0.0)]
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0.0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Of the learning rate: what a layer has of that of the layer above it. The head has all, the embeddings least."""


class ScheduleConfig(Section):
    """Learning rate over the run: linear warm-up, then the named shape down to `final_fraction` of the peak."""

    name: Literal["linear", "cosine", "wsd"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay_steps: PositiveInt | None = None
    """Only for wsd: the last steps, in which the rate falls linearly."""
    final_fraction: Fraction = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> "ScheduleConfig":
        if self.name == "wsd" and self.decay_steps is None:
            raise ValueError("schedule wsd needs decay_steps")
        if self.name != "wsd" and self.decay_steps is not None:
            raise ValueError(f"decay_steps would have no effect with schedule {self.name}; it belongs to wsd")
        return self


class TrainConfig(Section):
    steps: PositiveInt
    """Optimizer steps of the whole run, resumed parts included."""
    log_every_steps: PositiveInt = 10
    evaluate_every_steps: PositiveInt = 1000
    evaluate_sequences: PositiveInt = 1024
    """Sequences of the held-out split used by each evaluation (fewer when the split is smaller)."""
    save_every_steps: PositiveInt = 1000
    keep_last: PositiveInt = 3
    """The newest checkpoints that stay when another is published."""
    keep_every_steps: PositiveInt | None = None
    """Checkpoints of a multiple of these steps stay for good."""
    max_hours: Annotated[float, Field(gt=0.0)] | None = None
    """Stop for requeue after this time, checkpoint included."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.keep_every_steps is not None and self.keep_every_steps % self.save_every_steps:
            raise ValueError(
                f"keep_every_steps {self.keep_every_steps} is not a multiple of save_every_steps"
                f" {self.save_every_steps}, so few or none of these steps would be saved"
            )
        return self


class GuardsConfig(Section):
    """When a step is skipped, when the run goes back to a checkpoint, and when a process that hangs is ended."""

    spike_factor: Annotated[float, Field(gt=0.0)] = 8.0
    """A step is skipped when its gradient's norm is more than this many standard deviations above the running mean."""
    spike_after_steps: PositiveInt = 100
    """Updates before the first norm is judged."""
    max_skips: Annotated[int, Field(ge=0)] = 8
    """Skipped steps among the last `window_steps` that the run goes on with; one more and it goes back to its newest
    checkpoint, and passes over the steps that were skipped."""
    window_steps: PositiveInt = 100
    max_rollbacks: Annotated[int, Field(ge=0)] = 3
    """Times the run goes back without reaching a checkpoint trained beyond the step that failed; then it stops."""
    hang_seconds: Annotated[float, Field(gt=0.0)] = 1800.0
    """Without progress before a process tells who is waited for, and ends; more than starts and saves take."""

    @model_validator(mode="after")
    def _consistent(self) -> "GuardsConfig":
        if self.max_skips >= self.window_steps:
            raise ValueError(
                f"max_skips {self.max_skips} would have no effect: no more than window_steps {self.window_steps} steps"
                " can be skipped; give less"
            )
        return self


class RunConfig(Section):
    """What every run has, whatever it trains."""

    run_dir: Path
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    resume: Annotated[str, Field(min_length=1)] = "auto"
    """auto: newest complete checkpoint of run_dir, or a fresh start; never: refuse a used run_dir; or the path of
    another run's checkpoint, from which run_dir goes on, and at later starts from its own newest."""
    model: ModelConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    train: TrainConfig
    guards: GuardsConfig = GuardsConfig()

    @model_validator(mode="after")
    def _leaves_room(self) -> "RunConfig":
        down = self.schedule.warmup_steps + (self.schedule.decay_steps or 0)
        if down > self.train.steps:
            raise ValueError(f"schedule warm-up and decay take {down} steps, train.steps is {self.train.steps}")
        return self

    def to_yaml(self) -> str:
        """The resolved config; reading it back gives an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_unset=True), sort_keys=False)


class Config(RunConfig):
    """A pretraining run."""

    init_from: Path | None = None
    """A model in any format that launch/convert.py reads: a fresh start takes its weights, and nothing else of it."""
    data: DataConfig

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        length, positions = self.data.sequence_length, self.model.max_position_embeddings
        if length > positions:
            raise ValueError(
                f"data.sequence_length {length} exceeds model.max_position_embeddings {positions}: the mask decoder has"
                " no position for the last tokens; lower the first or raise the second"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.batch.sequences * self.data.sequence_length


def describe(config: Config, world_size: int) -> str:
    """Derived numbers, for people: what one optimizer step reads and how it is split."""
    batch, places = config.batch, config.tokens_per_step
    predicted = math.floor(places * config.data.masking.probability)
    return (
        f"{batch.sequences} sequences a step = {world_size} ranks x {batch.micro_sequences} sequences"
        f" x {batch.accumulation_steps(world_size)} accumulation steps; {places:,} token places a step, about"
        f" {predicted:,} of them predicted; {config.train.steps:,} steps = {places * config.train.steps:,} token places"
    )
