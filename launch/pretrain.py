"""Pretrain a DeBERTa: `deepspeed launch/pretrain.py CONFIG [key=value ...]`, or with torchrun, srun or mpirun.

Starts fresh or, when the run directory holds a complete checkpoint, goes on from it. Exit codes: 0 done,
75 stopped on request with a checkpoint (run the same command again), 76 hung or lost another rank (running it again may
help), 1 an error, said in one message.
With --rehearse it makes two steps, a save and a load in RUN_DIR.rehearsal instead, and tells what they took.
"""

import argparse
import os
import sys

from deberta_scale.config import ConfigError
from deberta_scale.config_file import load
from deberta_scale.train.launch_environment import complain, launch_or_complain


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, for instance configs/pretrain/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it, for instance train.steps=100")
    parser.add_argument("--rehearse", action="store_true", help="make and measure two steps, a save and a load")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # appended by the deepspeed launcher
    arguments = parser.parse_args()
    launch = launch_or_complain(os.environ)
    if launch is None:
        return 1
    try:
        config = load(arguments.config, arguments.overrides)
    except ConfigError as error:
        if launch.local_rank == 0:  # each machine may have a file of its own
            complain(str(error))
        return 1
    # imported late: a wrong config or launch is told before torch is loaded
    from deberta_scale.convert.formats import open_source
    from deberta_scale.rehearsal import rehearse
    from deberta_scale.train.loop import Run
    from deberta_scale.train.pretraining import Pretraining
    from deberta_scale.train.process import run_and_end

    if arguments.rehearse:
        run_and_end(launch, lambda: rehearse(config, launch, open_source))
    run_and_end(launch, lambda: Run(config, launch, Pretraining(config, open_source)).go())


if __name__ == "__main__":
    sys.exit(main())
