"""Real trainings of two ranks with faults in them, many in one process: see faults/fault_worker.py for the faults."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.launching import ROOT, free_port

WORKER = ROOT / "tests" / "faults" / "fault_worker.py"
OPTIONS = ["engine.zero_stage=1", "data.sequence_length=32", "batch.sequences=8", "schedule.warmup_steps=0"]
OPTIONS += ["train.steps=6", "train.save_every_steps=2", "train.keep_last=1"]


@dataclass(frozen=True)
class Scenario:
    """One start of a run."""

    run_dir: Path
    options: list[str] = field(default_factory=list)
    """Besides OPTIONS."""
    faults: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By rank, the name of a fault and its argument."""
    terminate_at: str | None = None
    """Both ranks get SIGTERM when rank 0 has printed this."""
    kill_after_seconds: float | None = None
    """And SIGKILL so much later."""


@dataclass(frozen=True)
class Outcome:
    codes: list[int]
    outputs: list[str]
    checkpoints: list[str]
    """Names below `checkpoints/` when it had ended."""

    @property
    def output(self) -> str:
        """Of rank 0."""
        return self.outputs[0]

    def order_of(self, *words: str) -> list[int]:
        """Where rank 0 first printed each."""
        assert all(word in self.output for word in words), self.output
        return [self.output.index(word) for word in words]


def conduct(directory: Path, config: str, scenarios: list[Scenario], disk_bytes: int | None = None) -> list[Outcome]:
    """Run the scenarios one after the other; with `disk_bytes`, `directory / "disk"` is a file system of that size,
    which only they see."""
    (directory / "config.yaml").write_text(config)
    told = []
    for scenario in scenarios:
        options = [f"run_dir={scenario.run_dir}", *OPTIONS, *scenario.options]
        told.append({"config": str(directory / "config.yaml"), "options": options, "port": free_port()})
        told[-1] |= {"faults": scenario.faults}
        if scenario.terminate_at is not None:
            told[-1] |= {"terminate_at": scenario.terminate_at}
        if scenario.kill_after_seconds is not None:
            told[-1] |= {"kill_after_seconds": scenario.kill_after_seconds}
    (directory / "scenarios.json").write_text(json.dumps(told))
    result = directory / "result.json"
    command = [sys.executable, str(WORKER), str(directory / "scenarios.json"), str(result)]
    if disk_bytes is not None:
        (directory / "disk").mkdir()
        command = on_small_disk(command, directory / "disk", disk_bytes)
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [Outcome(**outcome) for outcome in json.loads(result.read_text())]


def on_small_disk(command: list[str], directory: Path, disk_bytes: int) -> list[str]:
    """The command with a file system of that size at `directory`, which only it sees; where `can_mount`."""
    mount = f'mount -t tmpfs -o size={disk_bytes} tmpfs "$0" && exec "$@"'
    return ["unshare", "-rm", "sh", "-c", mount, str(directory), *command]


def can_mount() -> bool:
    """Whether processes here may have a file system of their own."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def events_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
