"""Run by test_finetuning_recipes.py in every rank: fine-tuning runs one after the other in one process.

Usage: finetuning_worker.py -- CONFIG [key=value ...] -- ... Each `--` group is one run; ends with the code of the first
that does not finish.
"""

import itertools
import os
import sys
from pathlib import Path

from deberta_scale.config_file import load_as
from deberta_scale.config_finetune import FineTuneConfig
from deberta_scale.finetuning import fine_tune
from deberta_scale.train.launch_environment import Launch, read_launch
from deberta_scale.train.process import run_and_end


def fine_tune_all(launch: Launch) -> int:
    groups = (list(words) for is_end, words in itertools.groupby(sys.argv[1:], "--".__eq__) if not is_end)
    configs = [load_as(FineTuneConfig, Path(path), overrides) for path, *overrides in groups]
    return next(filter(None, (fine_tune(config, launch) for config in configs)), 0)


launch = read_launch(os.environ)
run_and_end(launch, lambda: fine_tune_all(launch))
