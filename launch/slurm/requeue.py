"""What pretrain.sbatch asks before and after training. Not for people: see launch/slurm/submit.py.

    requeue.py start CONFIG [key=value ...]   may this job start? prints the run directory
    requeue.py preflight RUN_DIR              do all nodes answer and show their GPUs?
    requeue.py begin RUN_DIR                  training begins: count it
    requeue.py again RUN_DIR                  put the job back into the queue, if that leads anywhere

RUN_DIR/slurm.json remembers, between the starts of one job, the step of the newest checkpoint, how often training
began from there, and how often preflights failed. A job whose training begins again and again without a new checkpoint
is ended after MAX_RESTARTS_WITHOUT_PROGRESS. A node that failed MAX_NODE_FAILURES preflights in turn is excluded; a job
that failed MAX_FAILED_PREFLIGHTS in turn, with whatever nodes, is ended. Exit codes: 0 yes; 3 no, said why; 1 it could
not be asked.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deberta_scale.config import ConfigError
from deberta_scale.config_file import load
from deberta_scale.doctor_records import look_at_checkpoints
from deberta_scale.doctor_run import MAX_RESTARTS_WITHOUT_PROGRESS
from deberta_scale.durable import write_durably
from deberta_scale.train.launch_environment import LaunchError, hosts_of

EXIT_NO = 3
MAX_NODE_FAILURES = 2
MAX_FAILED_PREFLIGHTS = 6
PREFLIGHT_SECONDS = 120.0


@dataclass
class Record:
    """What one job knows of its earlier starts."""

    job: str
    step: int = 0
    """Of the newest complete checkpoint that training began from."""
    begun: int = 0
    """How often training began from there."""
    failed_preflights: int = 0
    """In turn, up to the last one."""
    failures: dict[str, int] = field(default_factory=dict)
    """Preflights in turn that a node failed."""

    @classmethod
    def read(cls, run_dir: Path, job: str) -> "Record":
        """The record of this job, or an empty one: what another job left is not ours."""
        try:
            record = cls(**json.loads((run_dir / "slurm.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls(job)
        return record if record.job == job else cls(job)

    def write(self, run_dir: Path) -> None:
        write_durably(run_dir / "slurm.json", json.dumps(asdict(self), indent=1) + "\n")

    @property
    def excluded(self) -> list[str]:
        return sorted(node for node, failures in self.failures.items() if failures >= MAX_NODE_FAILURES)


def step_kept(run_dir: Path) -> int:
    """The step that the next start goes on from, as far as markers and sizes tell: 0 without a checkpoint."""
    return look_at_checkpoints(run_dir / "checkpoints").newest_step


def hopeless(record: Record, run_dir: Path) -> str | None:
    """Why one more start of the job would lead nowhere, or None."""
    if record.failed_preflights >= MAX_FAILED_PREFLIGHTS:
        return (
            f"{record.failed_preflights} preflights in turn failed: the job ends. See what the nodes above lack, or"
            " whether LIST_DEVICES in launch/slurm/site.env is right, and submit again"
        )
    restarts = record.begun - 1
    if restarts >= MAX_RESTARTS_WITHOUT_PROGRESS and step_kept(run_dir) <= record.step:
        return (
            f"{restarts} restarts came no further than step {record.step}: the job ends. Read events.jsonl and the"
            " job's output, and submit again"
        )
    return None


def begin(run_dir: Path, environment: Mapping[str, str]) -> None:
    """Count that training begins: a job that is killed with its node has no say at its end."""
    record = Record.read(run_dir, environment["SLURM_JOB_ID"])
    step = step_kept(run_dir)
    record.begun = record.begun + 1 if step <= record.step else 1
    record.step = step
    record.write(run_dir)


def failing_nodes(nodes: Sequence[str], output: str, num_devices: int) -> dict[str, str]:
    """What is wrong with each node that fails; `output` has a line `node number-of-devices` for each that answered."""
    answers = dict(line.split() for line in output.splitlines() if len(line.split()) == 2)
    problems = {}
    for node in nodes:
        if node not in answers:
            problems[node] = f"did not answer within {PREFLIGHT_SECONDS:.0f} seconds"
        elif int(answers[node]) < num_devices:
            problems[node] = f"shows {answers[node]} GPU(s), not {num_devices}"
    return problems


def preflight(run_dir: Path, environment: Mapping[str, str]) -> bool:
    """Ask all nodes of the job, name those that fail, and remember them. True when none does."""
    nodes = hosts_of(environment["SLURM_JOB_NODELIST"])
    num_devices = int(environment.get("SLURM_GPUS_ON_NODE", "0"))
    count = "$($LIST_DEVICES 2> /dev/null | wc -l)" if num_devices else "0"
    tasks = [f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1", "--kill-on-bad-exit=0"]
    command = ["srun", "--mpi=none", *tasks, "bash", "-c", f'echo "$SLURMD_NODENAME" {count}']
    problems = failing_nodes(nodes, _output(command, PREFLIGHT_SECONDS), num_devices)
    record = Record.read(run_dir, environment["SLURM_JOB_ID"])
    if (
        1 < len(problems) == len(nodes)
    ):  # srun itself, or LIST_DEVICES; excluding them all would end in an empty cluster
        _say("no node passed the preflight, so none is blamed for it")
    else:
        passed = set(nodes) - problems.keys()
        record.failures = {node: count for node, count in record.failures.items() if node not in passed}
        record.failures |= {node: record.failures.get(node, 0) + 1 for node in problems}
    record.failed_preflights = record.failed_preflights + 1 if problems else 0
    record.write(run_dir)
    for node, problem in problems.items():
        failures = record.failures.get(node, 0)
        outcome = "excluded from this job" if failures >= MAX_NODE_FAILURES else "it gets another chance"
        _say(f"node {node} {problem} (preflight failed {failures} time(s) in turn: {outcome})")
    return not problems


def again(run_dir: Path, environment: Mapping[str, str]) -> bool:
    """Requeue the job, without the nodes that keep failing. False when that leads nowhere, or when SLURM is ending or
    requeueing it already."""
    job = environment["SLURM_JOB_ID"]
    record = Record.read(run_dir, job)
    if (reason := hopeless(record, run_dir)) is not None:
        _say(reason)
        return False
    state = _output(["squeue", "--noheader", f"--jobs={job}", "--format=%T"]).strip()
    if state != "RUNNING":  # scontrol would bring a cancelled job back to life
        _say(f"not requeued: the job is {state.lower() or 'gone'}, and SLURM decides what becomes of it")
        return False
    # A job that is requeued gets TERM, this process and its commands too; and only then may it be updated.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    excluded = _output(["squeue", "--noheader", f"--jobs={job}", "--format=%x"]).strip()
    if subprocess.run(["scontrol", "requeue", job], check=False).returncode:
        _say("the job could not be requeued; submit it again to go on")
        return False
    _say(f"requeued at step {step_kept(run_dir)}")
    if record.excluded:
        given = hosts_of(excluded) if excluded != "(null)" else []
        nodes = ",".join(sorted({*given, *record.excluded}))
        if subprocess.run(["scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}"], check=False).returncode:
            _say(f"the site does not let the job exclude {nodes}; submit it again with --exclude={nodes}")
    return True


def _output(command: Sequence[str], seconds: float | None = None) -> str:
    """Standard output of a command; of one that takes longer what it wrote until then."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds, check=False).stdout
    except subprocess.TimeoutExpired as error:
        return error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""


def _say(message: str) -> None:
    print(f"pretrain.sbatch: {message}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("start", "preflight", "begin", "again"))
    parser.add_argument("where", help="CONFIG for start, else RUN_DIR")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    try:
        return 0 if answer(arguments.question, arguments.where, arguments.overrides, os.environ) else EXIT_NO
    except (ConfigError, LaunchError, OSError) as error:
        _say(str(error))
        return 1


def answer(question: str, where: str, overrides: Sequence[str], environment: Mapping[str, str]) -> bool:
    """The answer to one question of the job script. Raises ConfigError, LaunchError or OSError."""
    if question == "preflight":
        return preflight(Path(where), environment)
    if question == "again":
        return again(Path(where), environment)
    if question == "begin":
        begin(Path(where), environment)
        return True
    run_dir = load(where, overrides).run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    if (reason := hopeless(Record.read(run_dir, environment["SLURM_JOB_ID"]), run_dir)) is not None:
        _say(reason)
        return False
    print(run_dir)
    return True


if __name__ == "__main__":
    sys.exit(main())
