"""Two steps, a save and a load at full size, before the run: what was measured, beside what the plan says.

Everything is the run's own but the directory, `RUN_DIR.rehearsal` beside the run directory, which is removed
afterwards, and the end: a stop after the second step, the first in which the moments exist. Memory that does not
suffice, a disk that cannot be written or is too small, a checkpoint that cannot be read back: all of it shows here.
No directory is removed but one with a file `REHEARSAL` in it, which nothing else writes.
"""

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from deberta_scale.config import Config, ConfigError
from deberta_scale.plan import Hardware, Plan, make_plan
from deberta_scale.plan_text import duration, size
from deberta_scale.train import checkpoint, distributed, offload_directory
from deberta_scale.train.distributed import AgreedError
from deberta_scale.train.host_memory import available_memory
from deberta_scale.train.initial_weights import InitialModel
from deberta_scale.train.interrupt import Interrupt
from deberta_scale.train.launch_environment import Launch
from deberta_scale.train.loop import EXIT_DONE, Run
from deberta_scale.train.pretraining import Pretraining

LESS_MEMORY = (
    "try a smaller batch.micro_sequences, engine.activation_checkpointing=non_reentrant, engine.zero_stage=3,"
    " engine.offload_optimizer=cpu, in this order"
)
KEPT_BY_ALLOCATOR = "on a CPU freed memory is kept, for speed, and counts (with MALLOC_TOP_PAD_=131072 it is not)"
STEPS = 2
"""The first step also pays for what is done once; its moments do not exist before its update."""
MARKER = "REHEARSAL"
"""The file that says that a directory may be removed."""


@dataclass(frozen=True)
class Measured:
    """What the rehearsal took; bytes are those of the rank that took the most."""

    at_start: int
    """Resident bytes of a process with all libraries loaded and the data open, before there was a model."""
    host_peak: int
    """Resident bytes of a process."""
    device_peak: int | None
    """Bytes that torch held at most on the GPU; None on a CPU, where all is in `host_peak`."""
    step_seconds: float
    """Of the last step."""
    blocked_seconds: float
    """Of training, for the copy that the save is written from, or for the whole when nothing is copied."""
    save_seconds: float
    """From its beginning to its publication."""
    load_seconds: float
    checkpoint_bytes: int
    free_disk_bytes: int
    """Of the disk of the run directory."""


class RehearsedRun(Run):
    """A run in a directory of its own that notes what it takes before it has a model, and stops after `STEPS` steps."""

    at_start = 0

    def _open(self, launch: Launch) -> None:
        distributed.on_main(lambda: claim(self.config.run_dir))
        super()._open(launch)
        with torch.device("meta"):
            self.objective.build_model()  # takes no memory itself; loads what building a model needs
        self.at_start = process_bytes("VmRSS")

    def _stop(self, reason: str) -> int:
        """Nothing is told: it is no stop from which another start goes on. Raises AgreedError for one that
        came too early."""
        if self.step < min(STEPS, self.config.train.steps):
            raise AgreedError(f"the rehearsal was stopped after step {self.step}, so nothing is measured: {reason}")
        return EXIT_DONE


class StopAfter:
    """An `Interrupt` that asks to stop also when `is_done` says so."""

    def __init__(self, interrupt: Interrupt, is_done: Callable[[], bool]) -> None:
        self._interrupt, self._is_done = interrupt, is_done

    def reason(self) -> str | None:
        return self._interrupt.reason() or (f"{STEPS} steps are rehearsed" if self._is_done() else None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._interrupt, name)


def rehearsal_of(config: Config) -> Config:
    """The same run in a directory of its own on the same disk, with a log line for each step."""
    run_dir = config.run_dir.resolve()
    steps = config.train.steps
    every = {"log_every_steps": 1, "evaluate_every_steps": steps, "save_every_steps": steps, "keep_every_steps": None}
    return config.model_copy(
        update={
            "run_dir": run_dir.with_name(f"{run_dir.name}.rehearsal"),
            "resume": "never",
            "train": config.train.model_copy(update=every),
        }
    )


def rehearse(config: Config, launch: Launch, open_initial: Callable[[Path], InitialModel]) -> int:
    """Rehearse `config` on all ranks together and print what was measured, on rank 0; returns the exit code.

    Raises AgreedError for whatever the run would refuse, and when saving or loading fails.
    """
    short = rehearsal_of(config)
    plan = make_plan(config, launch.world_size)
    if launch.is_main:
        print(f"rehearsal in {short.run_dir}, which is removed afterwards; planned for each rank:", flush=True)
        print(_planned_line(plan, launch.local_world_size), flush=True)
    try:
        run = RehearsedRun(short, launch, Pretraining(short, open_initial))
        run.interrupt = StopAfter(run.interrupt, lambda: run.step >= STEPS)  # type: ignore[assignment]
        run.go()
        measured = _measure(run, short)
        distributed.on_main(lambda: remove(short.run_dir))
    except AgreedError:
        if launch.is_main:
            _remove_or_say(short.run_dir)
        raise
    except Exception as error:
        _end_alone(error, launch, short.run_dir)
    if launch.is_main:
        hardware = Hardware(blocked_seconds=max(1e-3, measured.blocked_seconds))
        print("\n".join(comparison(config, make_plan(config, launch.world_size, hardware), measured)), flush=True)
    return 0


def comparison(config: Config, plan: Plan, measured: Measured) -> list[str]:
    """Lines for people: measured, planned."""
    on_gpu = measured.device_peak is not None
    lines = [
        (
            "memory of the host",
            size(measured.host_peak),
            f"{size(planned_host(plan, measured))} planned, {size(measured.at_start)} of them programs and libraries",
        ),
        (
            "a step",
            f"{measured.step_seconds:.2f} s",
            f"{_duration(config, measured)}; {_rate(plan, measured)}",
        ),
        ("a save", f"{measured.save_seconds:.2f} s", f"{measured.blocked_seconds:.2f} s of them without training"),
        ("a load", f"{measured.load_seconds:.2f} s", "with all digests compared"),
        ("a checkpoint", size(measured.checkpoint_bytes), f"{size(plan.saving.checkpoint)} planned"),
        (
            "free disk",
            size(measured.free_disk_bytes),
            f"{size(plan.saving.disk)} planned for {plan.saving.num_kept} kept, one being written",
        ),
    ]
    if measured.device_peak is not None:
        lines.insert(0, ("memory of the GPU", size(measured.device_peak), f"{size(plan.memory.device_peak)} planned"))
    steps = plan.saving.steps_between(measured.step_seconds, plan.steps)
    if not on_gpu:
        lines.append(("", "", KEPT_BY_ALLOCATOR))
    notes = [f"save about every {steps:,} steps (Young's interval; the config says {config.train.save_every_steps:,})"]
    if measured.free_disk_bytes < plan.saving.disk:
        notes.append("warning: the disk has no room for all checkpoints that the config keeps")
    return [
        f"rehearsed {STEPS} steps; measured, of the rank that took the most:",
        *(f"  {name:<20}{value:>12}  {note}".rstrip() for name, value, note in lines),
        *notes,
    ]


def planned_host(plan: Plan, measured: Measured) -> int:
    """Resident bytes of a process: with the libraries, and on a CPU with what is the device's elsewhere."""
    memory = plan.memory
    return measured.at_start + (memory.cpu_peak if measured.device_peak is None else memory.host_peak)


def process_bytes(field: str) -> int:
    """`VmRSS` (resident now) or `VmHWM` (resident at most) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kibibytes) * 1024


def _measure(run: RehearsedRun, short: Config) -> Measured:
    """On all ranks together; loads what was saved."""
    saved = distributed.on_main(lambda: checkpoint.newest_complete(short.run_dir))
    if saved is None:
        raise AgreedError(f"{short.run_dir} holds no complete checkpoint, though a save was said to be published")
    peak = process_bytes("VmHWM")
    on_gpu = torch.cuda.is_available() and run.engine.device.type == "cuda"
    device_peak = torch.cuda.max_memory_reserved() if on_gpu else 0
    start = time.perf_counter()
    checkpoint.load(run.engine, saved, distributed.together(lambda: _facts(saved)), short.seed)
    seconds = time.perf_counter() - start
    of_ranks = distributed.gather_objects((run.at_start, peak, device_peak, seconds))
    at_start, peak, device_peak, seconds = (max(values) for values in zip(*of_ranks, strict=True))
    step, blocked, whole, num_bytes, free = distributed.on_main(lambda: _recorded(short.run_dir))
    return Measured(
        at_start, peak, device_peak if on_gpu else None, step, blocked, whole, seconds, num_bytes, free + num_bytes
    )


def _facts(saved: Path) -> dict[str, Any]:
    manifest = checkpoint.read_manifest(saved)
    return {name: manifest[name] for name in ("zero_stage", "precision")}


def _recorded(run_dir: Path) -> tuple[float, float, float, int, int]:
    """Seconds of the last step, blocked and whole seconds of the save, bytes of the checkpoint, bytes that are free."""
    log = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    steps = [record["seconds_per_step"] for record in log if record["kind"] == "train"]
    if not steps:
        reasons = ", ".join(event["why"] for event in events if event["event"] == "step skipped")
        raise ConfigError(f"every step of the rehearsal was skipped ({reasons or 'fp16 overflowed'}): none is measured")
    began = [event for event in events if event["event"] == "save began"][-1]
    saved = [event for event in events if event["event"] == "saved"][-1]
    free = shutil.disk_usage(run_dir).free
    return steps[-1], began["blocked_seconds"], saved["total_seconds"], saved["bytes"], free


def claim(directory: Path) -> None:
    """Make the directory, with the marker in it; what a rehearsal that was killed left there is removed. Raises
    ConfigError for a directory that holds something else."""
    if directory.exists() and any(directory.iterdir()) and not (directory / MARKER).exists():
        raise ConfigError(f"{directory} is where a rehearsal writes, and holds something else; move it away")
    remove(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARKER).write_text("This directory is removed when the rehearsal ends, or by the next one.\n")


def remove(directory: Path) -> None:
    """Remove a directory that has the marker, the marker last: what a killed process leaves still has it. Leaves any
    other alone. Raises OSError."""
    if not (directory / MARKER).exists():
        return
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
    (directory / MARKER).unlink()
    directory.rmdir()


def _remove_or_say(directory: Path) -> None:
    try:
        remove(directory)
    except OSError as error:
        print(f"{directory} could not be removed ({error}); the next rehearsal does", file=sys.stderr, flush=True)


def _end_alone(error: Exception, launch: Launch, directory: Path) -> NoReturn:
    """End this process, whose error the others do not know: they would wait for it. A connection that breaks, or the
    launcher, ends them."""
    if _is_lack_of_memory(error):
        told = f"too little memory, {LESS_MEMORY}: {error}"
    else:
        traceback.print_exception(error)
        told = f"the rehearsal failed, see above, unless another rank ended first: {error!r}"
    print(f"error: rank {launch.rank}: {told}", file=sys.stderr, flush=True)
    if launch.is_main:
        _remove_or_say(directory)
    offload_directory.release_all()
    sys.stdout.flush()
    os._exit(1)


def _is_lack_of_memory(error: Exception) -> bool:
    """On a CPU torch raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def _planned_line(plan: Plan, ranks_here: int) -> str:
    """What is about to be taken, said before: a process that the kernel kills for its memory says nothing."""
    on_gpu, available = torch.cuda.is_available(), available_memory()
    on_host = plan.memory.host_peak if on_gpu else plan.memory.cpu_peak
    told = (
        f"  {size(on_host)} of the host's memory beside libraries; {size(available / ranks_here)} a rank are available"
    )
    if on_host * ranks_here > available:
        told = f"warning: too little memory, {LESS_MEMORY}\n{told}"
    return f"  {size(plan.memory.device_peak)} of a GPU's memory\n{told}" if on_gpu else told


def _rate(plan: Plan, measured: Measured) -> str:
    rate = plan.flops_per_step / measured.step_seconds / plan.world_size / 1e12
    return f"{rate:.3g} TFLOP/s a rank (--tflops-per-rank of launch/plan.py)"


def _duration(config: Config, measured: Measured) -> str:
    days = measured.step_seconds * config.train.steps / 86400
    return f"so {duration(days)} for {config.train.steps:,} steps"
