"""What a run directory tells: records, checkpoints, and what lies beside them; `doctor_run` judges it. Reads only;
imports no torch.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INTERVALS_OF_SILENCE = 20
"""A run that logs nothing for as long as so many intervals take has ended."""
LEAST_SILENCE_SECONDS = 300.0
_STARTS = ("starting", "start", "resume")
"""The first is recorded before model and engine are made, one of the others when they are."""
_CHECKPOINT = re.compile(r"step-\d{8}")

Event = dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """Names, oldest first."""

    complete: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    """What is wrong with each that has a marker; sizes are looked at, digests only by the next start."""
    unfinished: list[str] = field(default_factory=list)
    largest_bytes: int = 0

    @property
    def newest_step(self) -> int:
        """0 without a complete one."""
        return max((int(name.removeprefix("step-")) for name in self.complete), default=0)


@dataclass(frozen=True)
class RunState:
    """What a run directory tells."""

    events: list[Event]
    """Of the last start, from its first step on or, if it has not come so far, from its beginning."""
    step: int
    """The last one logged; 0 for none."""
    seconds_per_interval: float
    silence_seconds: float
    """Since the newest of the records was written."""
    checkpoints: Checkpoints
    stop_file: bool
    slurm: dict[str, Any]
    free_bytes: int

    def last(self, *kinds: str) -> Event | None:
        """The last event of these kinds since the start."""
        return next((event for event in reversed(self.events) if event.get("event") in kinds), None)

    @property
    def only_began(self) -> bool:
        """Whether the last start told nothing but that it began."""
        return len(self.events) == 1 and self.events[0].get("event") == "starting"

    @property
    def most_silence_seconds(self) -> float:
        """Of a run that goes on."""
        return max(LEAST_SILENCE_SECONDS, INTERVALS_OF_SILENCE * self.seconds_per_interval)

    @property
    def disk_is_full(self) -> bool:
        """Whether the next checkpoint has no room."""
        return self.free_bytes < max(self.checkpoints.largest_bytes, 10_000_000)


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
            checkpoints=look_at_checkpoints(run_dir / "checkpoints"),
            stop_file=(run_dir / "STOP").exists(),
            slurm=_slurm(run_dir / "slurm.json"),
            free_bytes=shutil.disk_usage(run_dir).free,
        )
    except OSError as error:
        raise ValueError(f"{run_dir} cannot be read: {error}") from None


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


def look_at_checkpoints(directory: Path) -> Checkpoints:
    """Those of a run, by markers, manifests and sizes."""
    complete, damaged, unfinished, largest = [], {}, [], 0
    for path in sorted(directory.glob("step-*")):
        if not _CHECKPOINT.fullmatch(path.name) or not (path / "COMPLETE").exists():
            unfinished.append(path.name)
            continue
        try:
            files = json.loads((path / "manifest.json").read_text())["files"]
            largest = max(largest, sum(entry["bytes"] for entry in files.values()))
            wrong = [name for name, entry in files.items() if _bytes_of(path / name) != entry["bytes"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
