"""The objective of pretraining: masked tokens of packed rows, judged on held-out rows."""

import json
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from deberta_scale.config import Config
from deberta_scale.data.loader import MaskedLoader, StepData
from deberta_scale.model.pretraining import PretrainingModel
from deberta_scale.model.sizes import training_flops_per_sequence
from deberta_scale.train.announcement import start_lines
from deberta_scale.train.evaluation import evaluate
from deberta_scale.train.initial_weights import InitialModel, Stretches, initial_weights
from deberta_scale.train.launch_environment import Launch
from deberta_scale.train.metrics import duration, sum_of
from deberta_scale.train.objective import Judgement
from deberta_scale.train.state import GuardState, TrainState, trajectory_of


class Pretraining:
    """An `Objective`: shards in, a language model out."""

    without_targets = (
        "no row of this step has a token that may be masked; look at the shards with data_prep/inspect_shards.py: its"
        " documents hold nothing but unknown characters, or are too few"
    )

    def __init__(self, config: Config, open_initial: Callable[[Path], InitialModel] | None = None) -> None:
        """With `init_from`, weights to begin with are taken through `open_initial`."""
        self.config = config
        self._open_initial = open_initial
        self.tokenizer = config.data.tokenizer_dir
        self.flops_per_step = config.batch.sequences * training_flops_per_sequence(
            config.model, config.data.sequence_length, config.data.masking.probability, config.batch.micro_sequences
        )

    def open(self, launch: Launch) -> None:
        self.training_data = self._loader("train", launch)
        self.training_data.check_repetition(self.config.train.steps, self.config.batch.sequences)
        self.held_out = self._loader("validation", launch)

    def _loader(self, split: str, launch: Launch) -> MaskedLoader:
        return MaskedLoader(
            self.config.data.split_dirs(split),
            self.config.data,
            seed=self.config.seed,
            micro_sequences=self.config.batch.micro_sequences,
            rank=launch.rank,
            world_size=launch.world_size,
            model_vocab_size=self.config.model.vocab_size,
            sequences_per_step=self.config.batch.sequences,
        )

    def build_model(self) -> PretrainingModel:
        checkpointing = self.config.engine.activation_checkpointing == "non_reentrant"
        return PretrainingModel(self.config.model, checkpoint_activations=checkpointing)

    def initial_weights(self, model: nn.Module) -> tuple[Stretches, list[str]]:
        assert isinstance(model, PretrainingModel)
        return initial_weights(self.config, model, self._open_initial)

    def state_after(self, step: int, guards: GuardState) -> TrainState:
        data = self.training_data
        return TrainState(step, data.fingerprint, trajectory_of(self.config), data.source_fingerprints, guards)

    def check_continues(self, state: TrainState) -> None:
        state.check_continues(self.config, self.training_data.fingerprint, self.training_data.source_fingerprints)

    def steps(self, step: int) -> Generator[StepData, None, None]:
        sequences = self.config.batch.sequences
        return self.training_data.steps(step * sequences, sequences)

    def start_lines(self, step: int, world_size: int) -> Iterator[str]:
        return start_lines(self.config, step, world_size, self.training_data, self.held_out)

    def epochs_at(self, step: int) -> dict[str, float]:
        return self.training_data.epochs_read(step * self.config.batch.sequences)

    def best_step(self, step: int) -> None:
        """The newest one is taken."""

    def ended(self, step: int) -> None:
        """All steps are made."""

    def facts_of_data(self) -> dict[str, Any]:
        """By source of a mixture (the only one has no name), what `preparation.json` beside the shards tells but its
        plan; of shards without such a file, which training does not need, nothing."""
        data = self.config.data
        names = [""] if data.mixture is None else list(data.mixture.sources)
        found: dict[str, Any] = {}
        for name, directory in zip(names, data.directories.values(), strict=True):
            try:
                facts = json.loads((directory / "preparation.json").read_text(encoding="utf-8"))
                found[name] = {key: value for key, value in facts.items() if key != "plan"}
            except (OSError, ValueError, AttributeError):
                continue
        return found

    def evaluate(self, engine: Any, step: int, agree_to_stop: Callable[[], str | None]) -> Judgement:
        start = time.perf_counter()
        train, mixture = self.config.train, self.config.data.mixture
        shares = None if mixture is None else mixture.share_of_run(train.steps)
        by_source = evaluate(engine, self.held_out, train.evaluate_sequences, shares, agree_to_stop)
        result = sum_of(by_source.values())
        values: dict[str, Any] = {"loss": result.loss, "perplexity": result.perplexity}
        values |= {"masked_accuracy": result.accuracy, "unigram_entropy": self.held_out.unigram_entropy_nats}
        values |= {f"loss/{name}": part.loss for name, part in by_source.items() if name}
        values["predicted_tokens"] = result.predicted_tokens
        of_sources = "".join(f"  {name} {part.loss:.4f}" for name, part in by_source.items() if name)
        line = (
            f"loss {result.loss:.4f}  perplexity {result.perplexity:,.1f}  masked accuracy {result.accuracy:.3f}"
            f"  ({result.predicted_tokens:,} predictions, {duration(time.perf_counter() - start)}){of_sources}"
        )
        return Judgement(values, line)
