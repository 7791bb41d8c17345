"""Starting real training processes for tests: several gloo ranks on this machine, no launcher in between."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PRETRAIN = ROOT / "launch" / "pretrain.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Ranks:
    """The processes of one run."""

    processes: list[subprocess.Popen[str]]

    def wait(self, seconds: float = 240.0) -> tuple[list[int], list[str]]:
        """Exit codes and outputs (standard output and error together), by rank."""
        try:
            outputs = [process.communicate(timeout=seconds)[0] for process in self.processes]
        finally:
            self.kill()
        return [process.returncode for process in self.processes], outputs

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def start(world_size: int, *arguments: str | Path, **environment: str) -> Ranks:
    """Start `python ARGUMENTS` once for each rank, with the variables a launcher would set."""
    common = os.environ | {
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
        **environment,
    }
    return Ranks(
        [
            subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world_size)
        ]
    )


def run_worker(
    worker: Path, directory: Path, world_size: int, task: str, config_path: Path, *groups: list[str]
) -> list[Any]:
    """What this script's ranks write into a file of `directory` for a task, a result for each group of overrides."""
    result = directory / f"{task}-{world_size}.json"
    words = chain.from_iterable(["--", *group] for group in groups)
    codes, outputs = start(world_size, worker, task, result, config_path, *words).wait()
    assert codes == [0] * world_size, outputs[0][-3000:]
    results: list[Any] = json.loads(result.read_text())
    return results


def read_log(run_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The records of one kind in a run's log, in order."""
    lines = (run_dir / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
