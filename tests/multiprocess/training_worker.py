"""Run by the tests in every rank: several short trainings in one process, results written by rank 0 as JSON.

Usage: training_worker.py TASK RESULT CONFIG [key=value ...] -- [key=value ...] -- ...
Each `--` group is one training; the overrides before the first `--` belong to all of them.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import torch

from deberta_scale.batch import MaskedBatch
from deberta_scale.config import Config
from deberta_scale.data.loader import StepData
from deberta_scale.train import distributed
from deberta_scale.train.launch_environment import Launch
from deberta_scale.train.loop import Run
from deberta_scale.train.metrics import Totals
from deberta_scale.train.pretraining import Pretraining
from deberta_scale.train.step import train_step
from tests.working import run_groups


def losses(config: Config, launch: Launch) -> list[float]:
    """Train to the end; the loss of every step (the config logs each)."""
    Run(config, launch, Pretraining(config)).go()
    lines = (config.run_dir / "log.jsonl").read_text().splitlines() if launch.is_main else []
    return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]


class RecordingEngine:
    """The real engine, whose whole gradient is read before each update."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.gradient: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __call__(self, batch: Any) -> Any:
        return self._engine(batch)

    def step(self) -> None:
        if self._engine.is_gradient_accumulation_boundary():
            from deepspeed.utils import safe_get_full_grad

            parts = [safe_get_full_grad(parameter).flatten() for parameter in self._engine.module.parameters()]
            self.gradient = torch.cat(parts).tolist()
        self._engine.step()


def gradient(config: Config, launch: Launch) -> dict[str, Any]:
    """The whole gradient of the first step, and how many tokens each rank predicts in it."""
    run = Run(config, launch, Pretraining(config))
    data = run.objective.training_data.step(0, config.batch.sequences)
    recording = RecordingEngine(run.engine)
    train_step(recording, data, 1e-3, Totals(run.engine.device))
    counts = [batch.predict_ids.numel() for batch in data.micro_batches]
    return {"gradient": recording.gradient, "predicted": distributed.gather_objects(counts)}


def without_predictions(config: Config, launch: Launch) -> dict[str, Any]:
    """A step in which rank 0 has nothing to predict, then one in which nobody has: losses, and the error."""
    run = Run(config, launch, Pretraining(config))
    data = run.objective.training_data.step(0, config.batch.sequences)
    nothing = StepData([empty_like(batch) for batch in data.micro_batches], 0, 0, 0)
    run._guarded_step(nothing if launch.is_main else data)
    after_one = [bool(p.isfinite().all()) for p in run.engine.module.parameters()]
    loss = run.totals.read().loss
    try:
        run._guarded_step(nothing)
        message = "no error"
    except ValueError as error:
        message = str(error)
    return {"loss": loss, "finite": all(after_one), "message": distributed.gather_objects(message), "step": run.step}


def empty_like(batch: MaskedBatch) -> MaskedBatch:
    """The same rows with nothing masked."""
    nothing = batch.predict_ids[:0]
    return dataclasses.replace(batch, predict_positions=nothing, predict_ids=nothing, max_predictions_per_row=0)


TASKS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (losses, gradient, without_predictions)
}
run_groups(lambda task, config, launch, _: TASKS[task](config, launch))
