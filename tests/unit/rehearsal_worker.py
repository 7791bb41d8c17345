"""Run by test_plan_rehearsal.py in every rank.

`rehearsal_worker.py RANK ARGUMENTS...` is `launch/pretrain.py ARGUMENTS...`, but rank RANK lacks memory in its second
step.
"""

import os
import runpy
import sys

import torch

from deberta_scale.train.loop import Run
from tests.launching import PRETRAIN

make_step = Run._guarded_step


def lack_memory(run: Run, data: object) -> bool:
    if run.step == 1:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")
    return make_step(run, data)


if os.environ["RANK"] == sys.argv.pop(1):
    Run._guarded_step = lack_memory
runpy.run_path(str(PRETRAIN), run_name="__main__")
