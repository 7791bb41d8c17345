"""Train for a while under faults that a seed draws: `python -m tests.soak --config CONFIG --out DIR`.

The same seed and number of faults make the same soak; of fewer faults the same ones come first. DIR is left with both
runs (`undisturbed`, `disturbed`), and what every rank of every start printed (`outputs`).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from deberta_scale.durable import refuse_used
from tests.faulting import can_mount, on_small_disk
from tests.launching import ROOT

_DISK_BYTES = 40_000_000
"""A few checkpoints of the model, and a log."""


def run_soak(config: Path, directory: Path, seed: int, num_faults: int) -> int:
    """Soak `config` in a new directory. Returns the exit code: 0 when the run came through as it must."""
    (directory / "disk").mkdir(parents=True)
    command = [sys.executable, "-m", "tests.soak.conductor", str(config), str(directory), str(seed), str(num_faults)]
    if can_mount():
        command = on_small_disk(command, directory / "disk", _DISK_BYTES)
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="of a model whose step takes a part of a second")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty directory")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--faults", type=int, required=True, help="30 take some minutes")
    arguments = parser.parse_args()
    if arguments.faults < 1:
        parser.error(f"--faults {arguments.faults}: a soak has at least one")
    try:
        refuse_used(arguments.out)
        code = run_soak(arguments.config, arguments.out, arguments.seed, arguments.faults)
    except ValueError as error:
        parser.error(str(error))
    print(f"both runs, and what each rank of each start printed, are in {arguments.out}")
    return code


if __name__ == "__main__":
    sys.exit(main())
