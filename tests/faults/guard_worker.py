"""Run by the tests in every rank: several short trainings in one process, some with bad steps.

Usage: guard_worker.py TRAININGS RESULT CONFIG
TRAININGS is a JSON list of {options, bad, passed_over, break_weights_after, break_padding}: `bad` says by step (the
first is 1) what happens to the loss, `passed_over` names steps to leave out from the beginning; once, right after a
step, a weight becomes infinite; what pads weights is no number. RESULT becomes a JSON list of what rank 0 found.
"""

import dataclasses
import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from deberta_scale.config_file import load
from deberta_scale.model.pretraining import PretrainingModel
from deberta_scale.train import distributed
from deberta_scale.train.engine_state import copy_state
from deberta_scale.train.engine_vectors import vectors_of
from deberta_scale.train.guards import Guards
from deberta_scale.train.launch_environment import read_launch
from deberta_scale.train.loop import Run
from deberta_scale.train.pretraining import Pretraining

FORWARD = PretrainingModel.forward


def spoil(run: Run, bad: dict[str, Any], norms: list[float]) -> None:
    """From now on losses of the bad steps are multiplied: `nan` on rank 1 only, numbers on all ranks, or `sigmas`: so
    that the gradient is so many standard deviations above the mean, its norms by step being `norms` otherwise."""

    def forward(model: PretrainingModel, batch: Any) -> Any:
        loss_sum, *counts = FORWARD(model, batch)
        how = bad.get(str(run.step + 1)) if model.training else None
        if how == "nan":
            loss_sum = loss_sum * (math.nan if torch.distributed.get_rank() == 1 else 1.0)
        elif how is not None:
            loss_sum = loss_sum * factor(run, how, norms)
        return loss_sum, *counts

    PretrainingModel.forward = forward


def factor(run: Run, how: Any, norms: list[float]) -> float:
    if not isinstance(how, dict):
        return float(how)
    state = run.guards.state
    deviation = max(state.norm_variance**0.5, 0.1 * state.norm_mean)
    return (state.norm_mean + how["sigmas"] * deviation) / norms[run.step]


def break_weights(run: Run, step: int) -> None:
    original, broken = run._between_steps, []

    def between_steps() -> Any:
        if run.step == step and not broken:
            broken.append(step)
            with torch.no_grad():
                next(run.engine.module.parameters()).view(-1)[0] = math.inf
        return original()

    run._between_steps = between_steps


def break_padding(run: Run) -> None:
    """As memory may be that nobody has filled."""
    for vector in vectors_of(run.engine):
        values = torch.full_like(vector.master, math.nan)
        for piece in vector.pieces:
            stretch = slice(piece.offset, piece.offset + piece.size)
            values[stretch] = vector.master[stretch]
        vector.master.data.copy_(values)


def digest(run: Run) -> str:
    """Of all masters and moments, over all ranks."""
    found = hashlib.sha256()
    for values in copy_state(run.engine).values():
        found.update(values.numpy().tobytes())
    return " ".join(distributed.gather_objects(found.hexdigest()))


def train(
    number: int, training: dict[str, Any], config_path: str, directory: Path, first_norms: list[float]
) -> dict[str, Any]:
    run_dir = directory / f"run-{number}"
    config = load(config_path, [f"run_dir={run_dir}", *training["options"]])
    launch = read_launch(os.environ)
    run = Run(config, launch, Pretraining(config))
    norms: list[float] = []
    original = Guards.note

    def note(guards: Any, step: int, outcome: Any) -> None:
        norms.append(outcome.norm)
        original(guards, step, outcome)

    Guards.note = note
    if "passed_over" in training:
        run.guards.state = dataclasses.replace(run.guards.state, passed_over=training["passed_over"])
    spoil(run, training.get("bad", {}), first_norms)
    if "break_weights_after" in training:
        break_weights(run, training["break_weights_after"])
    if "break_padding" in training:
        break_padding(run)
    error = None
    try:
        run.go()
    except ValueError as failure:
        error = str(failure)
    Guards.note = original
    errors = distributed.gather_objects(error)
    found = {"errors": errors, "digest": digest(run), "norms": norms, "state": dataclasses.asdict(run.guards.state)}
    found |= {"steps": distributed.gather_objects(run.step)}
    if launch.is_main:
        for name in ("events", "log"):
            text = (run_dir / f"{name}.jsonl").read_text()
            found[name] = [json.loads(line) for line in text.splitlines()]
    return found


def main() -> None:
    trainings, result, config_path = sys.argv[1:]
    results = []
    for number, training in enumerate(json.loads(Path(trainings).read_text())):
        first_norms = results[0]["norms"] if results else []
        results.append(train(number, training, config_path, Path(result).parent, first_norms))
    if read_launch(os.environ).is_main:
        Path(result).write_text(json.dumps(results))
    distributed.end_process(0)


main()
