"""The run directory: what is in it before the first step."""

import json
import platform
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deberta_scale.config import ConfigError, RunConfig
from deberta_scale.durable import write_durably
from deberta_scale.train.checkpoint import complete_checkpoints, sweep_unfinished
from deberta_scale.train.distributed import Launch
from deberta_scale.train.metrics import append_event

_WEIGHTS = re.compile(r".*\.(safetensors|pt|h5|msgpack)|pytorch[._]model.*|.*\.index\.json")
"""What a model's directory may hold beside its tokenizer."""
_PACKAGES = ("deberta-scale", "torch", "deepspeed", "sentencepiece", "numpy", "numba")


def prepare(config: RunConfig, tokenizer: Path) -> list[str]:
    """Make or reopen the run directory, with `tokenizer` in it; no half-written checkpoint stays. Returns what to tell:
    the half-written ones that could not be removed.

    Raises ConfigError when `resume: never` meets a directory that holds a run, or when it cannot be written.
    """
    run_dir = config.run_dir
    if config.resume == "never" and complete_checkpoints(run_dir):
        raise ConfigError(
            f"run_dir {run_dir} holds checkpoints and resume is 'never'; use another run_dir or resume: auto"
        )
    notes: list[str] = []
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        for half_written in run_dir.glob("*.tmp"):  # by a start that was killed
            half_written.unlink()
        append_event(run_dir, "starting")  # until there is an event of the start itself, nobody else can tell of it
        sweep_unfinished(run_dir, notes.append)
        _copy_tokenizer(tokenizer, run_dir / "tokenizer")
    except OSError as error:
        raise ConfigError(f"run_dir {run_dir} cannot be used: {error}") from error
    return notes


def describe(config: RunConfig, launch: Launch, facts: dict[str, dict[str, Any]]) -> None:
    """Write down how this start runs, now that nothing refuses it: the resolved config, the environment, and `facts` by
    the names of their files. Raises OSError."""
    write_durably(config.run_dir / "config.yaml", config.to_yaml())
    for name, content in {"environment": _environment(launch), **facts}.items():
        write_durably(config.run_dir / f"{name}.json", json.dumps(content, indent=2) + "\n")


def _copy_tokenizer(source: Path, destination: Path) -> None:
    if destination.exists():
        return
    partial = destination.with_name("tokenizer.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for path in source.iterdir():
        if path.is_file() and not _WEIGHTS.fullmatch(path.name):
            shutil.copy(path, partial)
    partial.rename(destination)


def _environment(launch: Launch) -> dict[str, object]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": {package: version(package) for package in _PACKAGES} | {"python": platform.python_version()},
        "git_revision": _git_revision(),
        "ranks": launch.world_size,
        "started_by": launch.source,
        "host": platform.node(),
        "processor": platform.processor() or platform.machine(),
        "gpus": gpus,
    }


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
