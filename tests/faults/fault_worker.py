"""Run by the tests: real trainings of two ranks each, one after the other, some with a fault in one of their ranks.

Usage: fault_worker.py SCENARIOS RESULT
Torch is imported once; the ranks of each scenario are forked from here and run launch/pretrain.py. SCENARIOS is a JSON
list of {config, options, port, faults: {rank: {name: argument}}}; the last may be left out. RESULT
becomes a JSON list of exit codes, outputs and the names below `checkpoints/`, which the tests cannot see when this runs
on a disk of its own.
"""

import contextlib
import errno
import faulthandler
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  what takes long is imported before the ranks are forked
import torch._dynamo
import torch._inductor.compile_fx
import torch.utils.tensorboard  # noqa: F401

from deberta_scale.config_file import load
from deberta_scale.data.loader import MaskedLoader
from deberta_scale.model.pretraining import PretrainingModel
from deberta_scale.train import checkpoint, checkpoint_writer, distributed, interrupt, loop
from deberta_scale.train.engine_state import EngineState
from deberta_scale.train.state import TrainState

PRETRAIN = Path(__file__).parents[2] / "launch" / "pretrain.py"
WORLD_SIZE = 2
LIMIT_SECONDS = 120.0


# Only tests change the program while it runs.


def before(owner: Any, name: str, act: Callable[..., None]) -> None:
    """Let `owner.name` begin with `act`, called with the same arguments."""
    original = getattr(owner, name)

    def changed(*arguments: Any, **named: Any) -> Any:
        act(*arguments, **named)
        return original(*arguments, **named)

    setattr(owner, name, changed)


def end_here() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Faults. Each takes the argument the scenario gives; checkpoints are named as in `step-00000004`.


def kill_after_create(name: str) -> None:
    before(EngineState, "write", lambda state, path: end_here() if name in str(path) else None)


def kill_mid_write(name: str) -> None:
    original = EngineState.write

    def write_half(state: EngineState, path: Path) -> dict[str, Any]:
        described = original(state, path)
        if name in str(path):
            os.truncate(path, path.stat().st_size // 2)
            end_here()
        return described

    EngineState.write = write_half


def kill_before_file(name_and_file: str) -> None:
    name, file = name_and_file.split("/")
    before(
        checkpoint,
        "write_durably",
        lambda path, text: end_here() if path.name == file and path.parent.name.startswith(name) else None,
    )


def kill_before_rename(name: str) -> None:
    before(Path, "rename", lambda path, target: end_here() if path.name == f"{name}.partial" else None)


def kill_during_prune(name: str) -> None:
    def remove_a_little(path: Path) -> None:
        if path.name == name:
            (path / "COMPLETE").unlink()
            (path / "state.json").unlink()
            end_here()

    before(checkpoint, "remove", remove_a_little)


def kill_after_step(step: int) -> None:
    before(loop.Run, "_between_steps", lambda run: end_here() if run.step == step else None)


def hold_write(argument: dict[str, Any]) -> None:
    """The write of checkpoint `name` lasts until step `until`, for ever without; or until another save waits for it."""
    release = threading.Event()
    before(EngineState, "write", lambda state, path: release.wait() if argument["name"] in str(path) else None)
    if "until" in argument:
        before(loop.Run, "_between_steps", lambda run: release.set() if run.step == argument["until"] else None)
    if "until_waited_for" in argument:
        before(checkpoint_writer.Saver, "wait", lambda saver: release.set() if saver._current else None)


def fail_write(names: list[str]) -> None:
    def fail(state: EngineState, path: Path) -> None:
        if path.parents[1].name.removesuffix(".partial") in names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    before(EngineState, "write", fail)


def fill_disk(argument: dict[str, Any]) -> None:
    """From the save of a step on nothing more goes onto the disk of the run directory; for good, or until it is told
    that the save failed."""
    ballast = Path(argument["run_dir"]) / "ballast"
    told = threading.Event()

    def fill(saver: checkpoint_writer.Saver, engine: Any, state: TrainState) -> None:
        if state.step >= argument["from"] and not told.is_set():
            with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))

    def empty(saver: checkpoint_writer.Saver, save: Any) -> None:
        told.set()
        ballast.unlink()

    before(checkpoint_writer.Saver, "_start_writing", fill)
    if argument["until_told"]:
        before(checkpoint_writer.Saver, "_fail", empty)


def move_checkpoints_away(argument: dict[str, Any]) -> None:
    checkpoints = Path(argument["run_dir"]) / "checkpoints"

    def move(saver: checkpoint_writer.Saver, engine: Any, state: TrainState) -> None:
        if state.step == argument["at"]:
            checkpoints.rename(checkpoints.with_name("moved"))

    before(checkpoint_writer.Saver, "_start_writing", move)


def ask_to_stop(argument: dict[str, Any]) -> None:
    """In the middle of `where`, once: signals, a STOP file, or a clock that jumps to the deadline."""
    asked = threading.Event()
    after_deadline = time.time() + 1e5

    def ask() -> None:
        if asked.is_set():
            return
        asked.set()
        for how in argument["how"]:
            if how.startswith("SIG"):
                os.kill(os.getpid(), signal.Signals[how])
            elif how == "STOP":
                (Path(argument["run_dir"]) / "STOP").touch()
            else:
                interrupt.time = types.SimpleNamespace(time=lambda: after_deadline)

    where = argument["where"]
    if where == "data":
        before(MaskedLoader, "step", lambda loader, first_sample, sequences: ask() if first_sample else None)
    elif where == "forward":
        before(PretrainingModel, "forward", lambda model, batch: ask() if model.training else None)
    elif where == "evaluation":
        before(PretrainingModel, "forward", lambda model, batch: None if model.training else ask())
    elif where == "save":
        before(EngineState, "write", lambda state, path: ask())
    else:
        before(distributed, "end_process", lambda code: ask())


def go_on_after_a_copy(argument: None) -> None:
    """Right after loading: save it again elsewhere, load that, and go on."""

    def copy(run: loop.Run) -> None:
        directory = run.config.run_dir / "copy"
        (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
        facts = {"zero_stage": run.config.engine.zero_stage, "precision": run.config.engine.precision}
        saver = checkpoint_writer.Saver(directory, facts, checkpoint_writer.KeepPolicy(1), run.log)
        original = checkpoint.checkpoint_dir(run.config.run_dir, run.step)
        saver.begin(run.engine, TrainState.read(original / "state.json"))
        saver.finish()
        checkpoint.load(run.engine, checkpoint.checkpoint_dir(directory, run.step), facts, run.config.seed)

    before(loop.Run, "go", copy)


FAULTS: dict[str, Callable[[Any], None]] = {
    fault.__name__: fault
    for fault in (
        kill_after_create,
        kill_mid_write,
        kill_before_file,
        kill_before_rename,
        kill_during_prune,
        kill_after_step,
        hold_write,
        fail_write,
        fill_disk,
        move_checkpoints_away,
        ask_to_stop,
        go_on_after_a_copy,
    )
}


def run_rank(rank: int, scenario: dict[str, Any], output: Path) -> None:
    """In the forked process: never returns."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(scenario.get("world_size", WORLD_SIZE))}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(scenario["port"])}
    faulthandler.dump_traceback_later(LIMIT_SECONDS / 2)  # a hang shows where
    try:
        for name, argument in scenario.get("faults", {}).get(str(rank), {}).items():
            FAULTS[name](argument)
        sys.argv = [str(PRETRAIN), scenario["config"], *scenario["options"]]
        runpy.run_path(str(PRETRAIN), run_name="__main__")
    except SystemExit as stop:
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def conduct(scenario: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Exit codes and outputs by rank, and what lies below `checkpoints` afterwards."""
    outputs = [directory / f"rank-{rank}.txt" for rank in range(WORLD_SIZE)]
    for output in outputs:
        output.write_text("")
    children = []
    for rank, output in enumerate(outputs):
        child = os.fork()
        if child == 0:
            run_rank(rank, scenario, output)
        children.append(child)
    watch = threading.Timer(LIMIT_SECONDS, kill, [children])
    watch.start()
    if "terminate_at" in scenario:
        terminate(children, outputs[0], scenario)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    watch.cancel()
    run_dir = load(scenario["config"], scenario["options"]).run_dir
    names = sorted(path.name for path in (run_dir / "checkpoints").glob("*"))
    return {"codes": codes, "outputs": [output.read_text() for output in outputs], "checkpoints": names}


def terminate(children: list[int], output: Path, scenario: dict[str, Any]) -> None:
    """As the deepspeed launcher does: SIGTERM to every rank, SIGKILL to those still there after a while."""
    deadline = time.monotonic() + LIMIT_SECONDS / 2
    while scenario["terminate_at"] not in output.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    for child in children:
        os.kill(child, signal.SIGTERM)
    if "kill_after_seconds" in scenario:
        time.sleep(scenario["kill_after_seconds"])
        kill(children)


def kill(children: list[int]) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def main() -> None:
    scenarios, result = Path(sys.argv[1]), Path(sys.argv[2])
    found = [conduct(scenario, result.parent) for scenario in json.loads(scenarios.read_text())]
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
