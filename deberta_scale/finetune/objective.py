"""The objective of fine-tuning: a task's examples, an encoder with a head, the task's metrics."""

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deberta_scale.config import ConfigError
from deberta_scale.config_finetune import OWN_TASK, FineTuneConfig, FineTuningRunConfig, TaskConfig, resolve
from deberta_scale.data.loader import StepData
from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.finetune.features import features_of
from deberta_scale.finetune.inference import Outputs, predict, predictions_of
from deberta_scale.finetune.loader import FineTuningLoader
from deberta_scale.finetune.metrics import evaluate
from deberta_scale.finetune.model import TaskModel
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.readers_split import read_split
from deberta_scale.finetune.rows import Features
from deberta_scale.finetune.tasks import Task, own_task, task_named
from deberta_scale.model.initial import InitialWeights
from deberta_scale.model.sizes import BACKWARD_PER_FORWARD, layer_parameters
from deberta_scale.train import distributed
from deberta_scale.train.initial_weights import InitialModel, Stretches
from deberta_scale.train.launch_environment import Launch
from deberta_scale.train.metrics import duration
from deberta_scale.train.objective import Judgement
from deberta_scale.train.state import SAMPLES_VERSION, GuardState, TrainState

History = Sequence[tuple[int, dict[str, float]]]
"""Of evaluations: after how many steps, and what they found, by names such as `validation/accuracy`."""
ENCODER = "deberta."
"""Names that a pretrained model and a head share."""
_SETTINGS = ("model", "seed", "init_from", "from_scratch", "task", "head_dropout", "sift")


@dataclass(frozen=True)
class SplitOfTask:
    """Examples and their rows."""

    name: str
    examples: list[Example]
    features: Features


def task_of(config: TaskConfig) -> Task:
    """Raises ReadError for a task that is not in the table, or labels that are none."""
    if config.name != OWN_TASK:
        return task_named(config.name)
    assert config.text is not None and config.max_length is not None
    label, labels = config.label or "label", config.labels or ()
    return own_task(config.text, config.text_pair, label=label, labels=labels, max_length=config.max_length)


class FineTuning:
    """An `Objective`: labelled texts in, a model for the task out."""

    without_targets = "no row of this step has a label"

    def __init__(self, written: FineTuneConfig, pretrained: InitialModel, history: History = ()) -> None:
        """Read and tokenize the task's examples, and resolve the config; on every rank by itself. `history`: what
        evaluations of earlier starts found, see `evaluations_in`.

        Raises ValueError for whatever does not fit: the task, its files, its labels, the tokenizer, the length.
        """
        self.pretrained = pretrained
        self.task = task_of(written.task)
        if pretrained.tokenizer is None:
            raise ConfigError(f"init_from: {pretrained.path} has no tokenizer, so no text can be read for it")
        self.tokenizer = pretrained.tokenizer
        length = self._length(written.task)
        self._notes: list[str] = []
        splits = [self._read(written.task, name, length) for name in ("train", *self._validation_splits())]
        self.train_split, *self.held_out_splits = splits
        self.config: FineTuningRunConfig = resolve(
            written, pretrained.config, length, len(self.train_split.features.rows)
        )
        with torch.device("meta"):
            self.build_model()  # refuses settings that the head or SiFT does not know, before anything is made
        self.flops_per_step = self._flops_per_step()
        self._history = list(history)

    def _flops_per_step(self) -> float:
        lengths = [sum(map(len, row.sequences)) for row in self.train_split.features.rows]
        per_token = 2 * layer_parameters(self.config.model) * self.config.model.num_hidden_layers
        tokens = float(np.mean(lengths)) * self.config.batch.sequences
        passes = 1 + BACKWARD_PER_FORWARD
        if self.config.sift is not None:  # two whole passes, and for each ascent half of a backward pass as well
            passes = 2 * passes + self.config.sift.ascent_steps * (1 + BACKWARD_PER_FORWARD / 2)
        return passes * per_token * tokens

    def _validation_splits(self) -> list[str]:
        return [name for name in self.task.files if name.startswith("validation")]

    def _length(self, config: TaskConfig) -> int:
        length = config.max_length or self.task.max_length
        positions = self.pretrained.config.max_position_embeddings
        if self.pretrained.config.baseline and length > positions:
            raise ConfigError(
                f"task.max_length {length}: the model of {self.pretrained.path} has {positions} positions"
            )
        return length

    def _read(self, config: TaskConfig, name: str, length: int) -> SplitOfTask:
        split = read_split(self.task, config.directory, name)
        features = features_of(self.task, split.examples, Tokenizer.load(self.tokenizer), length, config.stride_tokens)
        self._notes += [f"{name}: {note}" for note in (*split.notes, *features.notes)]
        return SplitOfTask(name, split.examples, features)

    def open(self, launch: Launch) -> None:
        batch, seed = self.config.batch, self.config.seed
        spread = {"micro_sequences": batch.micro_sequences, "rank": launch.rank, "world_size": launch.world_size}
        self.training_data = FineTuningLoader(self.train_split.features.rows, seed=seed, **spread)
        self.held_out = [FineTuningLoader(split.features.rows, seed=seed, **spread) for split in self.held_out_splits]

    @property
    def metric(self) -> str:
        """The one that tells the best checkpoint: of the first validation split."""
        return f"{self.held_out_splits[0].name}/{self.task.metrics[0]}"

    def build_model(self) -> TaskModel:
        config = self.config
        checkpointing = config.engine.activation_checkpointing == "non_reentrant"
        return TaskModel(self.task, config.model, config.head_dropout, config.sift, checkpointing)

    def initial_weights(self, model: nn.Module) -> tuple[Stretches, list[str]]:
        fresh = InitialWeights(model, self.config.model.initializer_range, self.config.seed)
        if self.config.from_scratch:
            return fresh, [f"weights are fresh (from_scratch), shape and tokenizer those of {self.pretrained.path}"]
        weights = self.pretrained.weights

        def stretch(name: str, start: int, size: int) -> torch.Tensor:
            given = name.removeprefix("model.")
            if not given.startswith(ENCODER) or given not in weights.shapes:
                return fresh(name, start, size)
            return weights.read(given).view(-1)[start : start + size]

        return stretch, [f"encoder from {self.pretrained.path}, the head's weights are fresh", *self.pretrained.notes]

    def _trajectory(self) -> dict[str, object]:
        tree = self.config.model_dump(mode="json")
        settings: dict[str, object] = {key: tree[key] for key in _SETTINGS}
        return {"samples_version": SAMPLES_VERSION, "batch.sequences": self.config.batch.sequences, **settings}

    def state_after(self, step: int, guards: GuardState) -> TrainState:
        return TrainState(step, self.training_data.fingerprint, self._trajectory(), guards=guards)

    def check_continues(self, state: TrainState) -> None:
        wanted = self._trajectory()
        differences = state.differences(wanted, wanted)
        if state.data_fingerprint != self.training_data.fingerprint:
            differences.append(f"  task.directory: the rows of {self.config.task.directory} are other ones than then")
        if differences:
            raise ConfigError(
                f"the checkpoint of step {state.step} does not continue with this config:\n"
                + "\n".join(differences)
                + "\ngive the saved values back, or another run_dir for a new run"
            )

    def steps(self, step: int) -> Generator[StepData, None, None]:
        sequences = self.config.batch.sequences
        return self.training_data.steps(step * sequences, sequences)

    def start_lines(self, step: int, world_size: int) -> Iterator[str]:
        yield from self._notes
        sizes = ", ".join(
            f"{split.name} {len(split.examples):,} examples in {len(split.features.rows):,} rows"
            for split in (self.train_split, *self.held_out_splits)
        )
        yield f"task {self.task.name} ({self.task.head}): {sizes}; at most {self.config.task.max_length} tokens a row"
        train, batch = self.config.train, self.config.batch
        yield (
            f"batch: {batch.sequences} rows a step = {world_size} ranks x {batch.micro_sequences} rows x"
            f" {batch.accumulation_steps(world_size)} accumulation steps; {train.steps:,} steps ="
            f" {self.epochs_at(train.steps)['']:.2f} epochs; judged every {train.evaluate_every_steps:,}"
        )
        if self.config.sift is not None:
            yield f"SiFT: weight {self.config.sift.weight:g}, compat {self.config.sift.compat}"

    def epochs_at(self, step: int) -> dict[str, float]:
        return {"": step * self.config.batch.sequences / len(self.train_split.features.rows)}

    def best_step(self, step: int) -> int | None:
        """The first of the best ones."""
        return next(iter(self.steps_best_first(step)), None)

    def steps_best_first(self, step: int) -> list[int]:
        """Those up to `step` after which there was an evaluation; of equals the earlier first."""
        seen = [(-values[self.metric], at) for at, values in self._history if at <= step]
        return [at for _, at in sorted(seen)]

    def results_at(self, step: int) -> dict[str, float]:
        """What the evaluation after `step` steps found."""
        return dict(self._history)[step]

    def ended(self, step: int) -> str | None:
        patience, best = self.config.stop_after_evaluations, self.best_step(step)
        if patience is None or best is None:
            return None
        since = sum(best < at <= step for at, _ in self._history)
        told = f"{since} evaluations in a row were no better than that of step {best}"
        return None if since < patience else told

    def facts_of_data(self) -> dict[str, Any]:
        counts = {split.name: len(split.examples) for split in (self.train_split, *self.held_out_splits)}
        return {"task": self.task.name, "labels": self.task.labels.names, "examples": counts, "notes": self._notes}

    def evaluate(self, engine: Any, step: int, agree_to_stop: Callable[[], str | None]) -> Judgement:
        start = time.perf_counter()
        values: dict[str, Any] = {}
        for split, loader in zip(self.held_out_splits, self.held_out, strict=True):
            outputs = predict(engine, loader, agree_to_stop)
            found = distributed.on_main(partial(self._judge, split, outputs))
            values |= {f"{split.name}/{name}": value for name, value in found.items()}
        self._history = [*(entry for entry in self._history if entry[0] < step), (step, values)]
        told = "  ".join(f"{name.removeprefix('validation/')} {value:.4f}" for name, value in values.items())
        is_best = ", the best so far" if self.best_step(step) == step else ""
        return Judgement(values, f"{told}  ({duration(time.perf_counter() - start)}){is_best}")

    def _judge(self, split: SplitOfTask, outputs: Outputs) -> dict[str, float]:
        predictions = predictions_of(self.task, split.examples, split.features.rows, outputs.logits)
        loss = {} if outputs.loss is None else {"loss": outputs.loss}
        return evaluate(self.task, split.examples, predictions) | loss


def evaluations_in(run_dir: Path) -> History:
    """Steps and findings of the evaluations in a run's log; a last line that was cut is none."""
    log = run_dir / "log.jsonl"
    if not log.exists():
        return []
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    found = [record for record in records if record.get("kind") == "evaluation"]
    return [(record["step"], {key: record[key] for key in record if "/" in key}) for record in found]
