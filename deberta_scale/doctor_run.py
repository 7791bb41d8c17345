"""Why a run last stopped, from what its directory holds, and what to do next. Reads only; imports no torch.

Told apart, in this order: a directory that holds no run; a run that finished; one that stopped on request; one that
seems to go on; one that ended without a word, where the last record says in which phase; and what else stands in the
way of the next start: a full disk, a STOP file, damaged checkpoints, restarts that lead nowhere.
"""

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INTERVALS_OF_SILENCE = 20
"""A run that logs nothing for as long as so many intervals take has ended."""
LEAST_SILENCE_SECONDS = 300.0
MAX_RESTARTS_WITHOUT_PROGRESS = 3
"""As the job script's (launch/slurm/requeue.py)."""
_SAVE_ENDS = ("saved", "save failed")
_STARTS = ("start", "resume")
_ENDS = ("finished", "stopped")

Event = dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """Names, oldest first."""

    complete: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    """What is wrong with each that has a marker; sizes are looked at, digests only by the next start."""
    unfinished: list[str] = field(default_factory=list)
    largest_bytes: int = 0


@dataclass(frozen=True)
class RunState:
    """What a run directory tells."""

    events: list[Event]
    """Of the last start: from its `start` or `resume` on."""
    step: int
    """The last one logged; 0 for none."""
    seconds_per_interval: float
    silence_seconds: float
    """Since the newest of the records was written."""
    checkpoints: Checkpoints
    stop_file: bool
    slurm: dict[str, Any]
    free_bytes: int

    @property
    def last(self) -> Event:
        return self.events[-1] if self.events else {}

    @property
    def disk_is_full(self) -> bool:
        """Whether the next checkpoint has no room."""
        return self.free_bytes < max(self.checkpoints.largest_bytes, 10_000_000)


@dataclass(frozen=True)
class Diagnosis:
    is_well: bool
    """Whether the same command may be run again, or the run is done or going on."""
    cause: str
    """One word or two, for machines: finished, stopped, running, disk full, killed in a save, ..."""
    why: str
    """A few sentences."""
    next: str
    """What to do."""


def diagnose(run_dir: Path, now: float | None = None) -> Diagnosis:
    """Raises ValueError when the directory cannot be read. `now`: seconds since the epoch."""
    if not (run_dir / "config.yaml").is_file():
        missing = "holds no config.yaml" if run_dir.is_dir() else "does not exist"
        why = f"{run_dir} {missing}: no run was started there, or its start was refused before the first record."
        return Diagnosis(False, "no run", why, "Look at what the start printed, or give the run_dir of the config.")
    state = read_state(run_dir, time.time() if now is None else now)
    cause, is_well, why, then = _explain(state)
    obstacles = _obstacles(state)
    told = [f"The last record is of step {state.step}, {_ago(state.silence_seconds)} old.", why, _kept(state)]
    return Diagnosis(
        is_well=is_well and not obstacles,
        cause=cause,
        why=" ".join([*told, *(what for what, _ in obstacles)]),
        next=" ".join([*(remedy for _, remedy in obstacles), then]),
    )


def read_state(run_dir: Path, now: float) -> RunState:
    """Lines that a crash cut short are left out. Raises ValueError when a file cannot be read."""
    try:
        events, log = _records(run_dir / "events.jsonl"), _records(run_dir / "log.jsonl")
        paths = [path for name in ("log.jsonl", "events.jsonl", "config.yaml") if (path := run_dir / name).exists()]
        starts = [number for number, event in enumerate(events) if event.get("event") in _STARTS]
        trained = [record for record in log if record.get("kind") == "train"]
        return RunState(
            events=events[starts[-1] :] if starts else events,
            step=max((record["step"] for record in trained), default=0),
            seconds_per_interval=_interval(trained),
            silence_seconds=now - max(path.stat().st_mtime for path in paths),
            checkpoints=_checkpoints(run_dir / "checkpoints"),
            stop_file=(run_dir / "STOP").exists(),
            slurm=_slurm(run_dir / "slurm.json"),
            free_bytes=shutil.disk_usage(run_dir).free,
        )
    except OSError as error:
        raise ValueError(f"{run_dir} cannot be read: {error}") from None


def _explain(state: RunState) -> tuple[str, bool, str, str]:
    """Cause, whether all is well, why, what next."""
    again = "Run the same command again: it goes on from the newest complete checkpoint."
    kind, step = state.last.get("event"), state.last.get("step", state.step)
    if kind == "finished":
        return "finished", True, f"The run finished at step {step}.", "Export it with launch/convert.py."
    if kind == "stopped":
        return "stopped", True, f"It stopped on request at step {step}: {state.last.get('reason')}.", again
    if kind == "save failed" or _failed_twice(state):
        error = next(e.get("error") for e in reversed(state.events) if e.get("event") == "save failed")
        why = f"A checkpoint could not be written: {error}."
        if "space" in str(error) or "quota" in str(error).lower():
            return (
                "disk full",
                False,
                why,
                f"Make room on the disk of the run directory, or lower train.keep_last. {again}",
            )
        return (
            "save failed",
            False,
            why,
            f"Repair what the message names (python launch/doctor.py --directory). {again}",
        )
    if kind == "hang":
        phase = f"step {state.last.get('step')}, {state.last.get('phase')}"
        behind = f"furthest behind: {state.last.get('furthest_behind')}, not heard of: {state.last.get('not_heard_of')}"
        why = f"It hung for {state.last.get('seconds')} seconds in {phase}, and was ended; {behind}."
        return "hang", False, why, f"Look at the output and the machine of that rank. {again}"
    most_silence = max(LEAST_SILENCE_SECONDS, INTERVALS_OF_SILENCE * state.seconds_per_interval)
    if state.silence_seconds < most_silence:
        then = (
            f"Wait: when nothing is recorded for {most_silence / 60:.0f} minutes, it has ended. Or look at its output."
        )
        return "running", True, "No end was recorded and the records are fresh: it seems to go on.", then
    return _ended_without_a_word(state, again)


def _ended_without_a_word(state: RunState, again: str) -> tuple[str, bool, str, str]:
    silent = "It ended without recording why: its processes were killed (memory, time limit, a lost node) or crashed."
    kinds = [event.get("event") for event in state.events]
    trouble = [event for event in state.events if event.get("event") in ("went back", "step skipped", "not finite")]
    if "save began" in kinds and not any(
        kind in _SAVE_ENDS for kind in kinds[len(kinds) - kinds[::-1].index("save began") :]
    ):
        begun = next(event for event in reversed(state.events) if event.get("event") == "save began")
        why = f"{silent} A save of step {begun.get('step')} had begun and was not published; what it left is not used."
        then = f"Look for `out of memory` in the system's log, a copy of the state is held during a save. {again}"
        return "killed in a save", False, why, then
    if trouble:
        last = trouble[-1]
        why = f"Training was in trouble before: {last['event']} at step {last.get('step', last.get('to_step'))}"
        why = (
            f"{why} ({last.get('reason') or last.get('why') or 'see events.jsonl'}). The run's output names the error."
        )
        then = (
            "Look at the samples that events.jsonl names, lower optimizer.learning_rate or lengthen"
            " schedule.warmup_steps."
        )
        return "diverged", False, why, then
    if _no_step_since_start(state):
        why = f"{silent} It had started, and not one interval of steps was logged after that."
        then = (
            "Most likely the first step did not fit into memory: read the end of the output, and try the same command"
            " with --rehearse, a smaller batch.micro_sequences, or engine.activation_checkpointing=non_reentrant."
        )
        return "killed at the start", False, why, then
    return "killed", False, silent, f"Read the end of the output and of the scheduler's record. {again}"


def _obstacles(state: RunState) -> list[tuple[str, str]]:
    """What stands in the way of the next start, and the remedy."""
    found = []
    if state.disk_is_full and state.last.get("event") != "finished":
        free, needed = state.free_bytes / 1e9, state.checkpoints.largest_bytes / 1e9
        room = f"{free:.2f} GB are free, a checkpoint takes {needed:.2f} GB."
        found.append((f"The disk is full: {room}", "Make room on the disk first."))
    if state.stop_file:
        found.append(
            ("A STOP file lies in the run directory.", "Remove it, or the next start stops after its first step.")
        )
    damaged = state.checkpoints.damaged
    if damaged:
        names = "; ".join(f"{name}: {problem}" for name, problem in damaged.items())
        where = "the newest complete one" if state.checkpoints.complete else "nothing, so it begins anew"
        found.append((f"Damaged: {names}.", f"The next start passes over what is damaged and goes on from {where}."))
    restarts = state.slurm.get("restarts_without_progress", 0)
    if restarts >= MAX_RESTARTS_WITHOUT_PROGRESS:
        found.append(
            (
                f"Job {state.slurm.get('job')} was requeued {restarts} times without a newer checkpoint.",
                "It is not requeued again: repair the cause and submit anew.",
            )
        )
    return found


def _kept(state: RunState) -> str:
    found = state.checkpoints
    unfinished = f", {len(found.unfinished)} unfinished" if found.unfinished else ""
    if not found.complete:
        return f"There is no complete checkpoint{unfinished}."
    return f"The newest complete checkpoint is {found.complete[-1]}, of {len(found.complete)}{unfinished}."


def _no_step_since_start(state: RunState) -> bool:
    started = state.events[0].get("step", 0) if state.events else 0
    return state.step <= started and not any(event.get("event") in _ENDS for event in state.events)


def _failed_twice(state: RunState) -> bool:
    ends = [event["event"] for event in state.events if event.get("event") in _SAVE_ENDS]
    return ends[-2:] == ["save failed"] * 2


def _records(path: Path) -> list[dict[str, Any]]:
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _interval(trained: list[dict[str, Any]]) -> float:
    """Seconds between the last two lines of the log, by what it says of a step."""
    if not trained:
        return 0.0
    steps = trained[-1]["step"] - trained[-2]["step"] if len(trained) > 1 else trained[-1]["step"]
    return float(trained[-1].get("seconds_per_step", 0.0)) * max(1, steps)


def _checkpoints(directory: Path) -> Checkpoints:
    complete, damaged, unfinished, largest = [], {}, [], 0
    for path in sorted(directory.glob("step-*")):
        if not (path / "COMPLETE").exists():
            unfinished.append(path.name)
            continue
        try:
            files = json.loads((path / "manifest.json").read_text())["files"]
            largest = max(largest, sum(entry["bytes"] for entry in files.values()))
            wrong = [name for name, entry in files.items() if _bytes_of(path / name) != entry["bytes"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged[path.name] = f"its manifest cannot be read ({error!r})"
            continue
        if wrong:
            damaged[path.name] = f"{wrong[0]} is missing or has another size than the manifest says"
        else:
            complete.append(path.name)
    return Checkpoints(complete, damaged, unfinished, largest)


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _slurm(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _ago(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 7200 else f"{seconds / 60:.0f} minutes"
