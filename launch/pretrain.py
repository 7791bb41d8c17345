"""Pretrain a DeBERTa: `deepspeed launch/pretrain.py CONFIG [key=value ...]`, or with torchrun, srun or mpirun.

Starts fresh or, when the run directory holds a complete checkpoint, goes on from it. Exit codes: 0 done,
75 stopped on request with a checkpoint (run the same command again), 76 hung or lost another rank (running it again may
help), 1 an error, said in one message.
With --rehearse it makes two steps, a save and a load in RUN_DIR.rehearsal instead, and tells what they took.
"""

import argparse
import os
import sys
import traceback

from deberta_scale.config import ConfigError
from deberta_scale.config_file import load
from deberta_scale.train.launch_environment import LaunchError, is_first, read_launch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, for instance configs/pretrain/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it, for instance train.steps=100")
    parser.add_argument("--rehearse", action="store_true", help="make and measure two steps, a save and a load")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # appended by the deepspeed launcher
    arguments = parser.parse_args()
    try:
        launch = read_launch(os.environ)
    except LaunchError as error:
        if is_first(os.environ):
            complain(str(error))
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
    from deberta_scale.train import distributed, offload_directory
    from deberta_scale.train.loop import Run
    from deberta_scale.train.pretraining import Pretraining

    try:
        if arguments.rehearse:
            code = rehearse(config, launch, open_source)
        else:
            code = Run(config, launch, Pretraining(config, open_source)).go()
        distributed.barrier()  # launchers end all ranks when one leaves with a code, and rank 0 has the last word
    except ValueError as error:
        code = 1
        if launch.is_main:
            complain(str(error))
        elif not isinstance(error, distributed.AgreedError):
            complain(f"rank {launch.rank}: {error}")
    except Exception as error:  # a rank alone: Python's shutdown would turn the code into that of an abort
        traceback.print_exc()
        offload_directory.release_all()
        distributed.end_process_at_once(distributed.EXIT_LOST if distributed.has_lost_a_rank(error) else 1)
    offload_directory.release_all()
    distributed.end_process(code)


def complain(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
