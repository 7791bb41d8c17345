"""The job script for training on SLURM, with stand-ins for SLURM's commands and for training: no root, no cluster.

What the real ones do is tested in tests/cluster.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launching import ROOT
from tests.slurm import link_checkout

SCRIPT = "launch/slurm/pretrain.sbatch"
SUBMIT = "launch/slurm/submit.py"

COMMANDS = {
    # preflight asks bash, training asks Python
    "srun": """if [[ " $* " == *" bash -c "* ]]; then cat "$STAND_INS/answers"; else exec "$STAND_INS/train"; fi""",
    # requeueing ends every process of the job: the shell, the one that asked, and scontrol itself
    "scontrol": """echo "$@" >> "$STAND_INS/scontrol.log"
        shell=$(cut --delimiter=" " --fields=4 /proc/$PPID/stat)
        if [ "$1" = requeue ]; then kill -TERM $shell $PPID $$; fi""",
    "squeue": """case "$*" in *%T) cat "$STAND_INS/state";; *%x) echo "(null)";; *%e) cat "$STAND_INS/end";; esac""",
}


@dataclass(frozen=True)
class Job:
    """The job script's surroundings, and what it did there."""

    directory: Path
    config: Path
    run_dir: Path

    def train_by(self, script: str) -> None:
        """Let this bash script stand for srun and all ranks; RUN is the run directory."""
        self.write("train", script)

    def write(self, name: str, script: str) -> None:
        """A command that this bash script stands for."""
        path = self.directory / name
        path.write_text(f"#!/usr/bin/env bash\n{script}\n")
        path.chmod(0o755)

    def start(self, restart: int = 0, **variables: str) -> subprocess.Popen[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        environment = kept | {
            "PATH": f"{self.directory}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "STAND_INS": str(self.directory),
            "RUN": str(self.run_dir),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_RESTART_COUNT": str(restart),
            **variables,
        }
        return subprocess.Popen(
            ["bash", SCRIPT, str(self.config), f"run_dir={self.run_dir}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, restart: int = 0, **variables: str) -> tuple[int, str]:
        process = self.start(restart, **variables)
        output = process.communicate(timeout=120)[0]
        return process.returncode, output

    @property
    def scontrol(self) -> list[str]:
        log = self.directory / "scontrol.log"
        return log.read_text().splitlines() if log.exists() else []


SAVE = """step="$RUN/checkpoints/step-0000000$1"; mkdir -p $step; echo '{"files": {}}' > $step/manifest.json
touch $step/COMPLETE"""


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until training, which the process has started, makes this file."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def job(tmp_path: Path, small_config: str) -> Job:
    config = tmp_path / "config.yaml"
    config.write_text(small_config)
    (tmp_path / "answers").write_text("n1 0\nn2 0\n")
    (tmp_path / "state").write_text("RUNNING\n")
    (tmp_path / "end").write_text("N/A\n")
    job = Job(tmp_path, config, tmp_path / "run")
    for name, script in COMMANDS.items():
        job.write(name, script)
    return job


def test_the_script_is_bash(job: Job) -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("code", "requeues"), [(0, False), (1, False), (2, False), (75, True), (76, True), (137, True)]
)
def test_a_stop_and_a_death_go_back_into_the_queue_and_an_error_does_not(job: Job, code: int, requeues: bool) -> None:
    """R26: requeues on 75, on 76, when ranks hung or lost one, and on 137, when one was killed; not on an error, which
    would come again."""
    job.train_by(f"exit {code}")
    returncode, output = job.run()
    assert returncode == code
    assert job.scontrol == ["requeue 17"] * requeues and ("requeued at step 0" in output) == requeues


def test_a_job_that_cannot_count_its_starts_is_not_requeued(job: Job) -> None:
    """On a full disk, for instance: it would come again and again, uncounted."""
    (job.run_dir / "slurm.json").mkdir(parents=True)
    job.train_by("exit 75")
    returncode, output = job.run()
    assert returncode == 1 and job.scontrol == [], output
    assert "slurm.json" in output


def test_a_job_without_progress_ends_after_three_restarts(job: Job) -> None:
    """R26: k restarts without a new checkpoint, then no more; a new checkpoint starts the count again."""
    job.train_by("exit 75")
    for restart in range(3):
        job.run(restart)
    job.train_by(SAVE.replace("$1", "4") + "\nexit 75")
    job.run(3)
    job.train_by("exit 75")
    for restart in range(4, 8):
        returncode, output = job.run(restart)
        assert returncode == 75
    assert job.scontrol == ["requeue 17"] * 7
    assert "3 restarts came no further than step 4: the job ends" in output


def test_a_job_that_slurm_restarts_again_and_again_is_not_started(job: Job) -> None:
    """R26: killed with its node each time, it has no say at its end; it then ends at its start."""
    (job.directory / "state").write_text("NODE_FAIL\n")
    job.train_by("exit 137")
    for restart in range(4):
        assert job.run(restart)[0] == 137
    returncode, output = job.run(4)
    assert returncode == 1 and "3 restarts came no further than step 0: the job ends" in output
    assert job.run(0, SLURM_JOB_ID="18")[0] == 137, "submitted again it has all its starts again"


def test_a_job_that_is_being_cancelled_stays_so(job: Job) -> None:
    """R26: training stops with 75 then, too; scontrol would bring the job back to life."""
    (job.directory / "state").write_text("COMPLETING\n")
    job.train_by("exit 75")
    returncode, output = job.run()
    assert returncode == 75 and job.scontrol == [] and "not requeued: the job is completing" in output


def test_a_signal_asks_the_ranks_by_a_file_and_waits_for_them(job: Job) -> None:
    """R24, R26: USR1 and TERM reach the batch shell alone; a file of an earlier start does not count."""
    job.run_dir.mkdir()
    (job.run_dir / "STOP").touch()
    wait_for_stop = 'until [ -e "$RUN/STOP" ]; do sleep 0.05; done; rm "$RUN/STOP"\n'
    job.train_by(f'touch "$RUN/first"\n{wait_for_stop}touch "$RUN/second"\n{wait_for_stop}exit 75')
    process = job.start()
    for mark, number in (("first", signal.SIGUSR1), ("second", signal.SIGTERM)):
        wait_for(job.run_dir / mark, process)
        process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and job.scontrol == ["requeue 17"], output


def test_the_exit_code_is_that_of_training_when_it_ends_while_a_signal_is_handled(job: Job) -> None:
    """R26: the signal ends the shell's `wait` with a code of its own; training is over before the shell looks again."""
    (job.directory / "slow_kill").write_text(
        'kill() { while [ -e "$RUN/STOP" ] && builtin kill "$@" 2> /dev/null; do :; done; builtin kill "$@"; }\n'
    )
    job.train_by('touch "$RUN/started"; until [ -e "$RUN/STOP" ]; do sleep 0.05; done')
    process = job.start(BASH_ENV=str(job.directory / "slow_kill"))
    wait_for(job.run_dir / "started", process)
    process.send_signal(signal.SIGUSR1)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and job.scontrol == [], output


@pytest.mark.parametrize(("answer", "seconds"), [("2030-01-02T03:04:05", "1893553445"), ("N/A", ""), ("", "")])
def test_training_is_told_when_the_job_ends_or_the_output_says_that_nobody_knows(
    job: Job, answer: str, seconds: str
) -> None:
    (job.directory / "end").write_text(f"{answer}\n")
    job.train_by('echo "ends at <${SLURM_JOB_END_TIME:-}>"')
    returncode, output = job.run(TZ="UTC")
    assert returncode == 0 and f"ends at <{seconds}>" in output
    assert ("squeue tells no end of the job" in output) == (seconds == "")


def test_a_node_that_fails_the_preflight_is_named_and_the_second_time_excluded(job: Job) -> None:
    """R26: requeueing ends the process that excludes, too."""
    job.train_by("exit 0")
    (job.directory / "answers").write_text("n1 0\n")
    for restart, outcome in enumerate(("it gets another chance", "excluded from this job")):
        returncode, output = job.run(restart)
        assert returncode == 1 and "node n2 did not answer within" in output and outcome in output
    assert job.scontrol == ["requeue 17", "requeue 17", "update JobId=17 ExcNodeList=n2"]
    (job.directory / "answers").write_text("n1 0\nn2 0\n")
    assert job.run(2)[0] == 0
    assert json.loads((job.run_dir / "slurm.json").read_text())["failures"] == {}


def test_failed_preflights_leave_the_restarts_of_training_alone(job: Job) -> None:
    """R26: training never began, so it cannot have come no further."""
    job.train_by("exit 75")
    for restart in range(7):
        (job.directory / "answers").write_text("n1 0\n" if restart % 2 else "n1 0\nn2 0\n")
        returncode, output = job.run(restart)
        assert returncode == (1 if restart % 2 else 75) and ("the job ends" in output) == (restart == 6)
    assert "3 restarts came no further than step 0" in output and job.scontrol.count("requeue 17") == 6


def test_preflights_that_fail_on_all_nodes_blame_none_and_end_the_job(job: Job) -> None:
    """R26: excluding every node would leave a job that waits for ever."""
    (job.directory / "answers").write_text("")
    for restart in range(6):
        returncode, output = job.run(restart)
        assert returncode == 1 and "no node passed the preflight, so none is blamed" in output
    assert job.scontrol == ["requeue 17"] * 5
    assert "6 preflights in turn failed: the job ends" in output and "LIST_DEVICES" in output


def test_a_node_that_lost_a_gpu_is_named(job: Job) -> None:
    job.train_by("exit 0")
    (job.directory / "answers").write_text("n1 8\nn2 7\n")
    returncode, output = job.run(SLURM_GPUS_ON_NODE="8")
    assert returncode == 1 and "node n2 shows 7 GPU(s), not 8" in output and "n1" not in output


def test_ranks_that_fail_because_a_node_died_are_started_again(job: Job) -> None:
    """R26: SLURM may take minutes to notice; until then the code is that of the ranks that lost their peers."""
    job.train_by('echo "n1 0" > "$STAND_INS/answers"; exit 1')
    returncode, output = job.run()
    assert returncode == 1 and "node n2 did not answer" in output and job.scontrol == ["requeue 17"]


def test_a_container_is_put_before_training_and_not_before_what_speaks_to_slurm(job: Job) -> None:
    checkout = job.directory / "checkout"
    checkout.mkdir()
    link_checkout(checkout, site='CONTAINER=(apptainer exec "my image.sif") PYTHON=python3-inside')
    job.write(
        "srun", """if [[ " $* " == *" bash -c "* ]]; then cat "$STAND_INS/answers"; else printf '<%s>' "$@"; fi"""
    )
    returncode, output = job.run(SLURM_SUBMIT_DIR=str(checkout), JOB_PYTHON=sys.executable, PYTHONPATH="")
    assert returncode == 0, output
    assert "<apptainer><exec><my image.sif><python3-inside><-u><launch/pretrain.py>" in output


def test_a_python_that_cannot_speak_to_slurm_is_named(job: Job) -> None:
    returncode, output = job.run(PYTHON="/nowhere/python")
    assert returncode == 1 and output.startswith("pretrain.sbatch: /nowhere/python is no Python from 3.11 on with")
    assert output.count("\n") == 1


def test_a_wrong_config_ends_the_job_with_its_message(job: Job) -> None:
    job.config.write_text("model: 3\n")
    job.train_by("exit 75")
    returncode, output = job.run()
    assert returncode == 1 and "config.yaml" in output and "Traceback" not in output and job.scontrol == []


def submit(job: Job, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SUBMIT, str(job.config), f"run_dir={job.run_dir}", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{job.directory}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_submit_fills_in_nodes_and_gpus(job: Job) -> None:
    words = "batch.sequences=32 --nodes 2 --gpus-per-node 2 --time 1-12 --dry-run --array 1-9%1"
    done = submit(job, *words.split())
    assert done.returncode == 0, done.stderr
    description, command = done.stdout.splitlines()
    assert "32 sequences a step = 4 ranks x 4 sequences x 2 accumulation steps" in description
    for option in ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--time=1-12", "--array=1-9%1"):
        assert f" {option} " in command
    assert command.endswith(f"{SCRIPT} {job.config} run_dir={job.run_dir} batch.sequences=32")


def test_submit_hands_the_job_to_sbatch(job: Job) -> None:
    job.write("sbatch", 'printf "%s\\n" "$@"')
    words = "--nodes 2 --gpus-per-node 1 --time 60 --cpus-per-task 3"
    done = submit(job, *words.split())
    assert done.returncode == 0, done.stderr
    assert {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=3", SCRIPT, str(job.config)} < set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--nodes 3 --gpus-per-node 1 --time 60", "batch.sequences must be a multiple of the 3 ranks"),
        ("--nodes 0 --gpus-per-node 1 --time 60", "--nodes 0 --gpus-per-node 1: both must be at least 1"),
        ("--nodes 1 --gpus-per-node 2 --time 10", "--time 10 leaves no time to train"),
        ("--nodes 1 --gpus-per-node 2 --time soon", "--time soon: expected a form like"),
        ("--nodes 1 --gpus-per-node 2 --time 60 --array 1-9", "only one may run at a time"),
        ("--nodes 1 --gpus-per-node 2 --time 60 data.shards=nowhere", "nowhere does not exist"),
    ],
)
def test_submit_refuses_what_cannot_work(job: Job, words: str, message: str) -> None:
    done = submit(job, *words.split(), "--dry-run")
    assert done.returncode == 1 and done.stdout == ""
    assert message in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
