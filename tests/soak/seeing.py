"""What can be seen of a run from outside: its records and its checkpoints."""

import json
from pathlib import Path
from typing import Any

from deberta_scale.train.checkpoint import complete_checkpoints, verify


class Violation(Exception):
    """The run did what it must not do."""


def records(path: Path) -> list[dict[str, Any]]:
    """Of a file of JSON lines, without one that is just being written. Raises Violation when a line is no record."""
    text = path.read_text() if path.exists() else ""
    found = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise Violation(f"line {number} of {path} is no record: {line!r}") from None
    return found


def events_of(run_dir: Path) -> list[dict[str, Any]]:
    return records(run_dir / "events.jsonl")


def starts_of(run_dir: Path) -> list[dict[str, Any]]:
    """The events in which a start tells from where it goes on."""
    return [event for event in events_of(run_dir) if event["event"] in ("start", "resume")]


def logged_step(run_dir: Path) -> int:
    """The last step in the log; 0 when there is none."""
    return max((record["step"] for record in records(run_dir / "log.jsonl") if record["kind"] == "train"), default=0)


def unfinished_files(run_dir: Path) -> list[Path]:
    """Of the checkpoint that is being written, those that hold something already."""
    found = (run_dir / "checkpoints").glob("*.partial/**/*")
    try:
        return sorted(path for path in found if path.is_file() and path.stat().st_size)
    except FileNotFoundError:  # published or removed while we look
        return []


def intact_checkpoints(run_dir: Path) -> list[Path]:
    """Complete ones whose digests agree, newest first."""
    return [path for path in complete_checkpoints(run_dir) if is_intact(path)]


def is_intact(checkpoint: Path) -> bool:
    try:
        verify(checkpoint)
    except (ValueError, FileNotFoundError):  # removed while we look, perhaps
        return False
    return True
