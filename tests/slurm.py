"""Stand-ins for a cluster's commands, which run its jobs at once on this machine, and for a site's checkout."""

import sys
from pathlib import Path

from tests.launching import ROOT

SBATCH = """#!/usr/bin/env bash
set -euo pipefail
# Elements one after the other, two of them where the script asks for many. Every job has the number 17.
elements=0-1
while [[ $1 == --* ]]; do
  case $1 in
    --array=*) elements=${1#--array=} ;;
    --dependency=afterok:17 | --kill-on-invalid-dep=yes | --parsable) ;;
    *) echo "no such option: $1" >&2; exit 2 ;;
  esac
  shift
done
export SLURM_SUBMIT_DIR=$PWD SLURM_CPUS_PER_TASK=1
if grep -q "^#SBATCH --array" "$1"; then
  first=${elements%-*} last=${elements#*-}
  export SLURM_ARRAY_TASK_MIN=$first SLURM_ARRAY_TASK_COUNT=$((last - first + 1))
  for element in $(seq "$first" "$last"); do
    SLURM_ARRAY_TASK_ID=$element bash "$@" 2>&1 | tee -a job.out >&2
  done
else
  bash "$@" 2>&1 | tee -a job.out >&2
fi
echo 17
"""
SRUN = """#!/usr/bin/env bash
echo "$1" > plugin
test "$2" = --kill-on-bad-exit=1
shift 2
exec {mpirun} -n 2 "$@"
"""


def write_stand_ins(directory: Path) -> None:
    """`sbatch` and `srun`; put the directory first in PATH. Jobs write job.out, srun the plugin it was told of."""
    mpirun = Path(sys.executable).with_name("mpirun")
    for name, content in {"sbatch": SBATCH, "srun": SRUN.format(mpirun=mpirun)}.items():
        (directory / name).write_text(content)
        (directory / name).chmod(0o755)


def link_checkout(directory: Path, site: str) -> None:
    """Make a directory a checkout with the shipped job scripts, whose site.env ends with these lines."""
    for name in ("configs", "data_prep", "deberta_scale"):
        (directory / name).symlink_to(ROOT / name)
    shipped, slurm = ROOT / "launch" / "slurm", directory / "launch" / "slurm"
    slurm.mkdir(parents=True)
    for script in [*shipped.glob("*.sbatch"), *shipped.glob("*.py")]:
        (slurm / script.name).symlink_to(script)
    (slurm / "site.env").write_text(f"{(shipped / 'site.env').read_text()}\n{site}\n")
