"""Check a run's numbers and submit it: `launch/slurm/submit.py CONFIG [key=value ...] --nodes N --gpus-per-node G ...`.

Partition and account come from SBATCH_PARTITION and SBATCH_ACCOUNT, as sbatch reads them; whatever else differs between
clusters from launch/slurm/site.env. Run it in the checkout. Exit codes: 0 submitted, 1 refused, said in one message.
"""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

from deberta_scale.config import Config, ConfigError, describe
from deberta_scale.config_file import load

SCRIPT = Path("launch/slurm/pretrain.sbatch")
MIN_MINUTES = 15.0
"""A job stops five minutes before its end at the latest, and takes a few to start."""
_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<day_hours>\d+)(?::(?P<day_minutes>\d+)(?::\d+)?)?|(?P<rest>\d+(?::\d+){0,2}))"
)


class SubmitError(ValueError):
    """A combination that cannot work; the message says what would."""


def minutes_of(time: str) -> float:
    """Minutes of a SLURM time: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S. Raises SubmitError for anything else."""
    if not (found := _TIME.fullmatch(time)):
        raise SubmitError(f"--time {time}: expected a form like 90, 24:00:00 or 2-12")
    if found["days"]:
        return int(found["days"]) * 1440 + int(found["day_hours"]) * 60 + int(found["day_minutes"] or 0)
    parts = [int(part) for part in found["rest"].split(":")]
    return parts[0] * 60 + parts[1] if len(parts) == 3 else parts[0]


def sbatch_command(config: Config, arguments: argparse.Namespace) -> list[str]:
    """The words to submit. Raises SubmitError or ConfigError when they could not train."""
    nodes, gpus = arguments.nodes, arguments.gpus_per_node
    if nodes < 1 or gpus < 1:
        raise SubmitError(f"--nodes {nodes} --gpus-per-node {gpus}: both must be at least 1")
    config.batch.accumulation_steps(nodes * gpus)
    if minutes_of(arguments.time) < MIN_MINUTES:
        raise SubmitError(f"--time {arguments.time} leaves no time to train; give at least {MIN_MINUTES:.0f} minutes")
    if arguments.array is not None and not re.fullmatch(r"\d+-\d+%1", arguments.array):
        raise SubmitError(
            f"--array {arguments.array}: elements share {config.run_dir}, so only one may run at a time; for ten jobs"
            " one after the other give 1-10%1"
        )
    for directory in config.data.directories.values():
        if not directory.is_dir():
            raise SubmitError(f"{directory} does not exist, where the config looks for shards")
    if not SCRIPT.is_file():
        raise SubmitError(f"{SCRIPT} is not here; run this command in the checkout")
    name = f"--job-name={config.run_dir.name}"
    options = [name, f"--nodes={nodes}", f"--ntasks-per-node={gpus}", f"--gpus-per-node={gpus}"]
    options += [f"--cpus-per-task={arguments.cpus_per_task}", f"--time={arguments.time}"]
    if arguments.array is not None:
        options += [f"--array={arguments.array}", "--output=%x-%A_%a.out"]
    return ["sbatch", *options, str(SCRIPT), arguments.config, *arguments.overrides]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, for instance configs/pretrain/base.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it, for instance train.steps=100")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus-per-node", type=int, required=True, help="as many ranks on each node")
    parser.add_argument(
        "--time", required=True, help="of one start of the job, for instance 24:00:00; it requeues itself"
    )
    parser.add_argument("--cpus-per-task", type=int, default=8, help="cores of each rank (default: 8)")
    parser.add_argument("--array", help="where jobs may not be requeued: 1-10%%1 is ten jobs, one after the other")
    parser.add_argument("--dry-run", action="store_true", help="print the command and submit nothing")
    arguments = parser.parse_intermixed_args()
    try:
        config = load(arguments.config, arguments.overrides)
        command = sbatch_command(config, arguments)
        print(describe(config, arguments.nodes * arguments.gpus_per_node))
        print(shlex.join(command), flush=True)
        return 0 if arguments.dry_run else subprocess.run(command, check=False).returncode
    except (ConfigError, SubmitError) as error:
        print(f"error: {error}", file=sys.stderr)
    except FileNotFoundError:
        print("error: there is no sbatch here; run this on a login node, or with --dry-run", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
