"""Pretrain a DeBERTa: `deepspeed launch/pretrain.py CONFIG [key=value ...]`.

Starts fresh or, when the run directory holds a complete checkpoint, goes on from it. Exit codes: 0 done,
75 stopped on request with a checkpoint (run the same command again), 1 an error, said in one message.
"""

import argparse
import os
import sys

from deberta_scale.config import ConfigError
from deberta_scale.config_file import load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, for instance configs/pretrain/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it, for instance train.steps=100")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # appended by the deepspeed launcher
    arguments = parser.parse_args()
    try:
        config = load(arguments.config, arguments.overrides)
    except ConfigError as error:
        return complain(error)
    from deberta_scale.convert.formats import (
        open_source,
    )  # imported late: a wrong config is told before torch is loaded
    from deberta_scale.train import distributed
    from deberta_scale.train.loop import Run

    try:
        code = Run(config, distributed.read_launch(os.environ), open_source).go()
    except ValueError as error:
        code = complain(error)
    distributed.end_process(code)


def complain(error: ValueError) -> int:
    """Say what is wrong once, not on every rank. Returns the exit code."""
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {error}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
