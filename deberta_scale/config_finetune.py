"""Fine-tuning as a person configures it, and as a run has it once model and data are known. Imports no torch."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from deberta_scale.config import (
    BatchConfig,
    ConfigError,
    EngineConfig,
    GuardsConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from deberta_scale.config_data import Fraction, PositiveInt, Section
from deberta_scale.config_sift import SiftConfig

OWN_TASK = "own"
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class TaskConfig(Section):
    """Which task, and where its files are."""

    name: str
    """One of `finetune.tasks.TASKS`, or `own`: files with columns of your own."""
    directory: Path
    """The benchmark's own files, or what `datasets` saved (`save_to_disk`)."""
    max_length: PositiveInt | None = None
    """Tokens of a row, special ones counted; default: the task's own. Longer texts are cut, contexts of questions read
    in several rows."""
    stride_tokens: PositiveInt | None = None
    """Of questions: how far apart the rows of a long context begin."""
    text: str | None = None
    """Of an own task: the column of the text."""
    text_pair: str | None = None
    label: str | None = None
    """Its column; default `label`."""
    labels: tuple[str, ...] | None = None
    """All labels, in the order of the model's outputs; none where they are numbers (regression)."""

    @model_validator(mode="after")
    def _consistent(self) -> "TaskConfig":
        columns = {"text": self.text, "text_pair": self.text_pair, "label": self.label, "labels": self.labels}
        given = [key for key, value in columns.items() if value is not None]
        if self.name != OWN_TASK and given:
            raise ValueError(f"{', '.join(given)} would have no effect: {self.name} has columns of its own; name: own")
        if self.name == OWN_TASK and (self.text is None or self.max_length is None):
            raise ValueError("an own task needs text, the name of a column, and max_length")
        return self


class FineTuneTrainConfig(Section):
    """How long, and what is kept."""

    epochs: Annotated[float, Field(gt=0.0)]
    evaluations_per_epoch: PositiveInt = 1
    """Each with a checkpoint."""
    stop_after_evaluations: PositiveInt | None = None
    """End when so many in a row were no better than the best one. Default: train all epochs."""
    log_every_steps: PositiveInt = 10
    max_hours: Annotated[float, Field(gt=0.0)] | None = None
    """Stop for requeue after this time, checkpoint included."""


class FineTuneScheduleConfig(ScheduleConfig):
    warmup_fraction: Fraction | None = None
    """Of all steps, instead of `warmup_steps`."""

    @model_validator(mode="after")
    def _one_warmup(self) -> "FineTuneScheduleConfig":
        if self.warmup_fraction is not None and "warmup_steps" in self.model_fields_set:
            raise ValueError(
                "warmup_steps and warmup_fraction are both given; leave one of them out, on the command line by the"
                " whole section: 'schedule={warmup_fraction: 0.1}'"
            )
        return self

    def of(self, steps: int) -> ScheduleConfig:
        """That of a run of so many steps."""
        written = self.model_dump(exclude={"warmup_fraction"}, exclude_unset=True)
        if self.warmup_fraction is not None:
            written["warmup_steps"] = round(self.warmup_fraction * steps)
        return ScheduleConfig(**written)


class FineTuneEngineConfig(EngineConfig):
    zero_stage: Literal[0, 1, 2, 3] = 1
    """Divides the optimizer, as much as the models of tasks need."""


class FineTuneConfig(Section):
    """A fine-tuning run as it is written down."""

    run_dir: Path
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    resume: Annotated[str, Field(min_length=1)] = "auto"
    """As in pretraining."""
    init_from: Path
    """The pretrained model: a run, or anything else that launch/convert.py reads."""
    from_scratch: bool = False
    """Take shape and tokenizer of `init_from` but no weights: what pretraining brings is measured against this."""
    task: TaskConfig
    dropout: Probability | None = None
    """In the encoder; default: the pretrained model's."""
    head_dropout: Probability | None = None
    """Before the last layer; default: `dropout`. The head of questions has none."""
    batch: BatchConfig
    optimizer: OptimizerConfig
    schedule: FineTuneScheduleConfig = FineTuneScheduleConfig()
    engine: FineTuneEngineConfig = FineTuneEngineConfig()
    train: FineTuneTrainConfig
    guards: GuardsConfig = GuardsConfig()
    sift: SiftConfig | None = None


class FineTuningRunConfig(RunConfig):
    """The same with all that follows from model and data."""

    init_from: Path
    from_scratch: bool
    task: TaskConfig
    engine: FineTuneEngineConfig = FineTuneEngineConfig()
    head_dropout: Probability | None
    stop_after_evaluations: PositiveInt | None
    sift: SiftConfig | None


def resolve(config: FineTuneConfig, model: ModelConfig, max_length: int, num_rows: int) -> FineTuningRunConfig:
    """With the shape of the pretrained model, and steps for epochs of `num_rows` training rows.

    Raises ConfigError when the schedule has more steps than that gives, or an early stop can never happen.
    """
    written = config.model_dump(exclude_unset=True)
    for key in ("dropout", "train", "task", "schedule"):
        written.pop(key, None)
    if config.dropout is not None:
        dropouts = {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout}
        model = model.model_copy(update=dropouts)
    steps_per_epoch = num_rows / config.batch.sequences
    steps = max(1, math.ceil(config.train.epochs * steps_per_epoch))
    every = min(steps, max(1, round(steps_per_epoch / config.train.evaluations_per_epoch)))
    patience, evaluations = config.train.stop_after_evaluations, math.ceil(steps / every)
    if patience is not None and patience >= evaluations:
        raise ConfigError(
            f"train.stop_after_evaluations {patience} has no effect on {evaluations} evaluation(s); give less"
        )
    train = TrainConfig(
        steps=steps,
        log_every_steps=config.train.log_every_steps,
        evaluate_every_steps=every,
        save_every_steps=every,
        keep_last=1,
        max_hours=config.train.max_hours,
    )
    return FineTuningRunConfig(
        **written
        | {
            "from_scratch": config.from_scratch,
            "task": config.task.model_copy(update={"max_length": max_length}),
            "head_dropout": config.head_dropout,
            "engine": config.engine,
            "stop_after_evaluations": config.train.stop_after_evaluations,
            "sift": config.sift,
            "schedule": _schedule_of(config, steps, num_rows),
            "model": model,
            "train": train,
        }
    )


def _schedule_of(config: FineTuneConfig, steps: int, num_rows: int) -> ScheduleConfig:
    schedule = config.schedule.of(steps)
    down = schedule.warmup_steps + (schedule.decay_steps or 0)
    if down > steps:
        raise ConfigError(
            f"schedule: warm-up and decay take {down} steps, but {config.train.epochs:g} epochs of {num_rows:,} rows,"
            f" {config.batch.sequences} a step, are {steps}; give fewer, or warmup_fraction instead of warmup_steps"
        )
    return schedule
