"""Run by the tests in every rank: launch/pretrain.py, but rank 1 never comes further than a place in one of its steps.

Usage: hang_worker.py HOW PHASE STEP CONFIG [key=value ...]
HOW: `held` (its main thread waits on a pipe nobody writes to) or `stopped` (all of the process stands still).
"""

import os
import runpy
import signal
import sys
from pathlib import Path

import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  what takes long is imported before anybody watches
import torch._dynamo
import torch._inductor.compile_fx
import torch.utils.tensorboard  # noqa: F401

from deberta_scale.train import watchdog

PRETRAIN = Path(__file__).parents[2] / "launch" / "pretrain.py"


def main() -> None:
    how, where, at_step, *arguments = sys.argv[1:]
    enter = watchdog.enter
    pipe, _ = os.pipe()

    def enter_and_stay(phase_entered: str, step: int | None = None) -> None:
        enter(phase_entered, step)
        here = watchdog.own_report().place
        if os.environ["RANK"] == "1" and (here.phase, here.step) == (where, int(at_step)):
            if how == "held":
                os.read(pipe, 1)
            os.kill(os.getpid(), signal.SIGSTOP)

    watchdog.enter = enter_and_stay
    sys.argv = [str(PRETRAIN), *arguments]
    runpy.run_path(str(PRETRAIN), run_name="__main__")


main()
