"""Fine-tune a pretrained model on a task: `deepspeed launch/finetune.py CONFIG [key=value ...]`, or as pretrain.py.

Starts fresh or goes on from the newest checkpoint of the run directory. At the end the best checkpoint, by the task's
first metric, is exported to RUN_DIR/huggingface, result.json is written, and the checkpoints are removed; the same
command does nothing then. Exit codes as of pretrain.py.

With --sweep it makes a run for each combination of values, in RUN_DIR/seed-1_learning_rate-1e-5 and so on, one after
the other; what is finished is kept, what was interrupted goes on. sweep.md has the table: mean and spread over seeds.
"""

import argparse
import os
import sys
from pathlib import Path

from deberta_scale.config import ConfigError
from deberta_scale.config_file import load_as
from deberta_scale.config_finetune import FineTuneConfig
from deberta_scale.finetune.sweep import Variation, variations
from deberta_scale.train.launch_environment import complain, launch_or_complain

WHOLE = "0/1"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML file, for instance configs/finetune/rte.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it, for instance seed=2")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="key=value,value",
        help="make a run for each of these values, for instance seed=1,2,3; given several times, for each combination",
    )
    parser.add_argument(
        "--part",
        default=WHOLE,
        metavar="I/N",
        help="of the sweep's runs only the numbers I, I + N, I + 2N, ...; I from 0",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # appended by the deepspeed launcher
    arguments = parser.parse_intermixed_args()
    launch = launch_or_complain(os.environ)
    if launch is None:
        return 1
    try:
        config = load_as(FineTuneConfig, arguments.config, arguments.overrides)
        runs, part = _runs(arguments), _part(arguments.part)
        if arguments.part != WHOLE and (not arguments.sweep or not runs[part]):
            raise ConfigError(f"--part {arguments.part} has no effect on a sweep of {len(runs)} run(s)")
    except ConfigError as error:
        if launch.local_rank == 0:  # each machine may have a file of its own
            complain(str(error))
        return 1
    # imported late: a wrong config or launch is told before torch is loaded
    from deberta_scale import finetuning
    from deberta_scale.train.process import run_and_end

    if arguments.sweep:
        run_and_end(launch, lambda: finetuning.sweep(config.run_dir, runs, part, launch))
    run_and_end(launch, lambda: finetuning.fine_tune(config, launch))


def _runs(arguments: argparse.Namespace) -> list[tuple[Variation, FineTuneConfig]]:
    """Those of a sweep, each in a directory of its own. Raises ConfigError."""
    runs = []
    for variation in variations(arguments.sweep):
        config = load_as(FineTuneConfig, arguments.config, [*arguments.overrides, *variation.overrides])
        run_dir = config.run_dir / variation.name
        runs.append((variation, config.model_copy(update={"run_dir": run_dir})))
    return runs


def _part(text: str) -> slice:
    """`I/N` → every N-th from I on. Raises ConfigError."""
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise ConfigError(f"--part {text!r}: expected I/N with I from 0 to N - 1, for instance 0/4")
    return slice(int(number), None, int(parts))


if __name__ == "__main__":
    sys.exit(main())
