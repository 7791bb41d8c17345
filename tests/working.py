"""What the scripts do that tests start in every rank: `tests.launching.run_worker` is the other end of it."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deberta_scale.config import Config
from deberta_scale.config_file import load
from deberta_scale.train import distributed
from deberta_scale.train.engine import start_process_group
from deberta_scale.train.launch_environment import Launch, read_launch


def run_groups(run: Callable[[str, Config, Launch, torch.device], Any]) -> None:
    """For the words `TASK RESULT CONFIG [key=value ...] -- [key=value ...] -- ...`: call `run` with the task and the
    config of each `--` group in turn, to which the overrides before the first `--` belong too, and write the list of
    what it gives on rank 0 into RESULT, as JSON. Each group has a run directory of its own, for all ranks. Ends the
    process."""
    task, result, config_path, *words = sys.argv[1:]
    common, *groups = _split(words)
    launch = read_launch(os.environ)
    device = start_process_group(launch)
    found = []
    for number, group in enumerate(groups):
        run_dir = f"run_dir={Path(result).parent / f'{task}-{launch.world_size}-{number}'}"
        found.append(run(task, load(config_path, [run_dir, *common, *group]), launch, device))
    if launch.is_main:
        Path(result).write_text(json.dumps(found))
    distributed.end_process(0)


def _split(words: list[str]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    for word in words:
        if word == "--":
            groups.append([])
        else:
            groups[-1].append(word)
    return groups
