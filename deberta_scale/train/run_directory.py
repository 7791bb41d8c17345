"""The run directory: what is written there before the first step."""

import json
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from deberta_scale.config import Config, ConfigError
from deberta_scale.durable import write_durably
from deberta_scale.train.checkpoint import complete_checkpoints, sweep_unfinished
from deberta_scale.train.distributed import Launch

_PACKAGES = ("deberta-scale", "torch", "deepspeed", "sentencepiece", "numpy", "numba")


def prepare(config: Config, launch: Launch) -> None:
    """Make or reopen the run directory: resolved config, environment, tokenizer; no half-written checkpoint stays.

    Raises ConfigError when `resume: never` meets a directory that holds a run, or when it cannot be written.
    """
    run_dir = config.run_dir
    if config.resume == "never" and complete_checkpoints(run_dir):
        raise ConfigError(
            f"run_dir {run_dir} holds checkpoints and resume is 'never'; use another run_dir or resume: auto"
        )
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        sweep_unfinished(run_dir)
        _copy_tokenizer(config.data.tokenizer_dir, run_dir / "tokenizer")
        write_durably(run_dir / "config.yaml", config.to_yaml())
        write_durably(run_dir / "environment.json", json.dumps(_environment(launch), indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"run_dir {run_dir} cannot be used: {error}") from error


def _copy_tokenizer(source: Path, destination: Path) -> None:
    if destination.exists():
        return
    partial = destination.with_name("tokenizer.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
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
