"""Run by test_engine_state.py in every rank.

engine_state_worker.py OUT train STAGE-PRECISION[-untrained|-cpu|-disk]...
    In OUT/STAGE-PRECISION: a few (or no) steps, `engine` (the state then) and `expected.safetensors` (DeepSpeed's own
    view of it), `final` after two more steps. From a fresh engine that was given `engine`: `again`, and `resumed` after
    two steps; `repeated` when then it was given `engine` once more.

engine_state_worker.py OUT move FROM STAGE-PRECISION...
    In OUT/FROM's name-to-STAGE-PRECISION: a fresh engine is given FROM/engine, and writes `engine`; then two steps.

engine_state_worker.py OUT refuse DIRECTORY...
    In OUT/rank-N.json: what an engine says of each DIRECTORY that it is given.

Losses of the two steps lie in `losses.json`.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from deberta_scale.train import distributed, engine
from deberta_scale.train.engine_state import FILE_NAME, copy_state, restore_state
from deberta_scale.train.launch_environment import read_launch
from tests.tied_training import tied_engine, train

BEFORE, AFTER = range(5), range(5, 7)


def build_extensions(offload: str) -> None:
    """As the runs of the other tests build them, so that none finds a build half done."""
    settings = SimpleNamespace(offload_optimizer=offload, precision="fp32", attention="auto")
    engine._build_extensions(SimpleNamespace(engine=settings), torch.device("cpu"))


def write(state: Any, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    state.write(directory / FILE_NAME.format(rank=torch.distributed.get_rank()))
    distributed.barrier()


def train_one(directory: Path, name: str) -> None:
    stage, precision, *other = name.split("-")
    offload = other[0] if other and other[0] != "untrained" else "none"
    build_extensions(offload)
    settings = {"offload": offload, "disk": directory / "disk"}
    first = tied_engine(int(stage), precision, **settings)
    directory.mkdir(parents=True, exist_ok=True)
    if "untrained" not in other:
        train(first, BEFORE)
        save_whole(first, int(stage), directory / "expected.safetensors")
    state = copy_state(first)
    assert state.is_copy == (offload != "disk")
    if not state.is_copy:
        write(state, directory / "engine")
    losses = train(first, AFTER)
    if state.is_copy:
        write(state, directory / "engine")  # the copy does not follow the engine
    write(copy_state(first), directory / "final")
    first.destroy()

    second = tied_engine(int(stage), precision, seed=1, **settings)
    restore_state(second, directory / "engine")
    write(copy_state(second), directory / "again")
    resumed = train(second, AFTER)
    write(copy_state(second), directory / "resumed")
    restore_state(second, directory / "engine")
    train(second, AFTER)
    write(copy_state(second), directory / "repeated")
    second.destroy()
    (directory / "losses.json").write_text(json.dumps({"undisturbed": losses, "resumed": resumed}))


def save_whole(engine: Any, stage: int, path: Path) -> None:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if stage in (1, 2):  # DeepSpeed has linked the moments when those of the second group were not there yet
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    expected = {}
    for name, parameter in engine.module.named_parameters():
        if stage == 0:
            state = engine.optimizer.state[parameter]
            found = {"weight": parameter.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        else:
            found = {kind: safe_get_full_optimizer_state(parameter, kind) for kind in ("exp_avg", "exp_avg_sq")}
            found["weight"] = safe_get_full_fp32_param(parameter)
        expected |= {f"{kind}/{name}": tensor.clone() for kind, tensor in found.items()}
    if torch.distributed.get_rank() == 0:
        save_file(expected, path)


def move(out: Path, source: Path, name: str) -> None:
    stage, precision = name.split("-")
    moved = tied_engine(int(stage), precision, seed=1)
    restore_state(moved, source / "engine")
    directory = out / f"{source.parent.name}-{source.name}-to-{name}"
    write(copy_state(moved), directory / "engine")
    (directory / "losses.json").write_text(json.dumps(train(moved, AFTER)))
    moved.destroy()


def refuse(out: Path, directories: list[str]) -> None:
    messages = []
    for directory in directories:
        try:
            restore_state(tied_engine(3, "bf16"), Path(directory))
        except ValueError as error:
            messages.append(str(error))
    out.mkdir(exist_ok=True)
    (out / f"rank-{torch.distributed.get_rank()}.json").write_text(json.dumps(messages))


def main() -> None:
    engine.start_process_group(read_launch(os.environ))
    out, action, *names = sys.argv[1:]
    if action == "refuse":
        refuse(Path(out), names)
        names = []
    for name in names:
        if action == "train":
            train_one(Path(out) / name, name)
        else:
            source, _, target = name.partition("=")
            move(Path(out), Path(source), target)
    distributed.end_process(0)


main()
