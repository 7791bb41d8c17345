"""A job that is stopped, preempted or loses a node comes back by itself, and learns what it would have learned."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.conftest import TRAINING, Curve, assert_same, curve
from tests.cluster.slurm_cluster import SlurmCluster, wait_until
from tests.launching import ROOT


@dataclass(frozen=True)
class Training:
    """A run in the queue, through the job script, with a rank on each of two nodes."""

    cluster: SlurmCluster
    run_dir: Path
    output: Path
    job: str

    def wait_for_step(self, step: int, starts: int) -> None:
        """Until this step was logged after so many starts."""

        def is_there() -> bool:
            state = self.cluster.job(self.job)["JobState"]
            assert state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), f"{state}\n{self.tail()}"
            log = self.run_dir / "log.jsonl"
            return self.starts() == starts and log.exists() and f'"step": {step},' in log.read_text()

        wait_until(is_there, f"step {step} in start {starts}\n{self.tail()}", 300)

    def events(self, name: str) -> list[dict[str, object]]:
        path = self.run_dir / "events.jsonl"
        events = map(json.loads, path.read_text().splitlines()) if path.exists() else iter([])
        return [event for event in events if event["event"] == name]

    def starts(self) -> int:
        return len(self.events("start") + self.events("resume"))

    def tail(self) -> str:
        return self.output.read_text()[-4000:] if self.output.exists() else ""

    def wait_for_end(self) -> None:
        assert self.cluster.wait_for_end(self.job)["JobState"] == "COMPLETED", self.tail()


def submit_to(cluster: SlurmCluster, config: Path, directory: Path, *words: str, **variables: str) -> Training:
    """Submit the job script with more options of sbatch, its output and the run being in `directory`."""
    output, run_dir = directory / "job.out", directory / "run"
    common = ["--ntasks-per-node=1", f"--output={output}", f"--chdir={ROOT}"]
    options = [word for word in words if word.startswith("--")]
    overrides = [word for word in words if not word.startswith("--")]
    script = ["launch/slurm/pretrain.sbatch", str(config), f"run_dir={run_dir}"]
    job = cluster.submit(*common, *options, *script, *overrides, **(TRAINING | variables))
    return Training(cluster, run_dir, output, job)


@pytest.fixture
def submit(cluster: SlurmCluster, config_path: Path, tmp_path: Path) -> Callable[..., Training]:
    return partial(submit_to, cluster, config_path, tmp_path)


@pytest.fixture(scope="module")
def no_progress(cluster: SlurmCluster, config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A job that leaves with the code for a requeue at every start. It mostly waits, and others use the cores."""
    directory = tmp_path_factory.mktemp("no_progress")
    python = stand_in(directory, "exit 75")
    return submit_to(cluster, config_path, directory, "--nodelist=n1", PYTHON=str(python))


@pytest.fixture(scope="module")
def held(cluster: SlurmCluster, config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A job whose ranks hang, here because they are held, until its minute is over. It was not warned. It waits, and
    others use the cores.
    """
    directory = tmp_path_factory.mktemp("held")
    options = ["--nodes=2", "--signal=B:CONT@1", "train.save_every_steps=2"]
    training = submit_to(cluster, config_path, directory, *options, SLURM_JOB_END_TIME=str(2**31))
    training.wait_for_step(4, starts=1)
    cluster.run("scancel", "--signal=STOP", training.job)
    cluster.wait_for_state(training.job, "STOPPED")
    cluster.run("scontrol", "update", f"JobId={training.job}", "TimeLimit=1")
    return training


def test_time_limit_signal_and_preemption(
    cluster: SlurmCluster, submit: Callable[..., Training], undisturbed: Callable[[int], Curve]
) -> None:
    """R24, R25: three orderly stops, each at a step of its own, with a checkpoint; nothing is lost or done twice."""
    training = submit("--nodes=2", "--time=3")  # less than three saves of a minute each: it stops after one step
    wait_until(lambda: len(training.events("stopped")) == 1, "the stop before the time limit", 300)
    cluster.wait_for_state(training.job, "PENDING")
    cluster.run("scontrol", "update", f"JobId={training.job}", "TimeLimit=60")

    training.wait_for_step(3, starts=2)
    cluster.run("scancel", "--batch", "--signal=USR1", training.job)
    wait_until(lambda: len(training.events("stopped")) == 2, "the stop by a signal", 120)

    wait_until(lambda: training.starts() == 3, f"the third start\n{training.tail()}", 300)
    cluster.run("srun", "--partition=high", "--nodes=2", "--exclusive", "true")
    training.wait_for_end()

    reasons = [str(event["reason"]) for event in training.events("stopped")]
    assert len(reasons) == 3 and reasons[0] == "time limit near" and "stop file" in reasons[1], reasons
    assert reasons[2] == "signal SIGTERM" or "stop file" in reasons[2]
    assert cluster.job(training.job)["Restarts"] == "3"
    assert_same(curve(training.run_dir), undisturbed(2))


def test_a_cancelled_job_stays_cancelled(
    cluster: SlurmCluster, submit: Callable[..., Training], tmp_path: Path
) -> None:
    """R26: training that saves when it is cancelled leaves with the code for a requeue, and is not requeued."""
    python = stand_in(tmp_path, "trap 'exit 75' TERM; touch training; while :; do sleep 0.1; done")
    training = submit("--nodes=1", PYTHON=str(python))
    wait_until((tmp_path / "training").exists, "the stand-in", 60)
    cluster.run("scancel", training.job)
    wait_until(lambda: "EndTime" in cluster.job(training.job), "the end", 60)
    wait_until(lambda: "not requeued" in training.tail(), "the end of the job script", 60)
    cluster.wait_for_state(training.job, "CANCELLED")


def test_a_node_dies_and_another_time_its_network(
    cluster: SlurmCluster, submit: Callable[..., Training], undisturbed: Callable[[int], Curve], no_progress: Training
) -> None:
    """R16: the job waits for two nodes and goes on from its newest checkpoint. SLURM notices SlurmdTimeout (here 10 s)
    after the loss. The node that died is started anew; the one that was cut off comes back with what ran on it. On the
    other node, which stays, the queue meanwhile tries another job again and again.
    """
    assert cluster.job(no_progress.job)["JobState"] in ("PENDING", "RUNNING")
    training = submit("--nodes=2", "train.save_every_steps=2")
    training.wait_for_step(4, starts=1)
    cluster.kill("n2")
    cluster.wait_for_state(training.job, "PENDING", seconds=90)
    cluster.boot("n2")

    training.wait_for_step(10, starts=2)
    cluster.unplug("n2")
    cluster.wait_for_state(training.job, "PENDING", seconds=90)
    cluster.plug_in("n2")

    training.wait_for_end()
    assert training.starts() == 3 and training.events("stopped") == []
    assert_same(curve(training.run_dir), undisturbed(2))


def test_a_node_that_fails_its_preflight_twice_is_excluded(
    cluster: SlurmCluster, submit: Callable[..., Training], tmp_path: Path, held: Training
) -> None:
    """R26: requeueing ends all processes of the job, the one that excludes the node among them: where SLURM is slow,
    before it has done so. The restarts of training are left alone. Meanwhile another job hangs.
    """
    assert held.starts() == 1
    cluster.run("srun", "--nodelist=n2", "bash", "-c", "echo GPU > /run/devices")  # a node's own directory
    python = stand_in(tmp_path, "exit 0")
    slow = executable(
        tmp_path / "scontrol", f'{shutil.which("scontrol")} "$@" && if [ $1 = requeue ]; then sleep 2; fi'
    )
    variables = {"PATH": f"{slow.parent}:{cluster.environment()['PATH']}", "PYTHON": str(python)}
    devices = {"LIST_DEVICES": "cat /run/devices", "SLURM_GPUS_ON_NODE": "1"}
    training = submit("--nodes=1", **variables, **devices)
    training.wait_for_end()
    job = cluster.job(training.job)
    assert (job["Restarts"], job["NodeList"], job["ExcNodeList"]) == ("2", "n2", "n1")
    assert training.tail().count("node n1 shows 0 GPU(s), not 1") == 2
    assert json.loads((training.run_dir / "slurm.json").read_text())["begun"] == 1


def test_a_reached_time_limit_ends_the_job_and_the_next_one_goes_on(
    cluster: SlurmCluster, config_path: Path, undisturbed: Callable[[int], Curve], held: Training
) -> None:
    """R16, R25: SLURM lets the ranks go on, to end them; what they save until then counts, and nothing is requeued."""
    assert cluster.wait_for_end(held.job)["JobState"] == "TIMEOUT", held.tail()
    assert cluster.job(held.job)["Restarts"] == "0"

    after = submit_to(cluster, config_path, held.run_dir.parent, "--nodes=2", "train.save_every_steps=2")
    after.wait_for_end()
    assert after.starts() == 2
    assert_same(curve(after.run_dir), undisturbed(2))


def test_a_job_that_comes_no_further_ends(cluster: SlurmCluster, no_progress: Training) -> None:
    """R26: on the real queue, with a stand-in for training that always wants to be started again."""
    assert cluster.wait_for_end(no_progress.job)["JobState"] == "FAILED"
    assert cluster.job(no_progress.job)["Restarts"] == "3"
    assert "3 restarts came no further than step 0: the job ends" in no_progress.tail()


def stand_in(directory: Path, script: str) -> Path:
    """A Python that runs this bash script, in `directory`, where it should train."""
    other = f'if [[ " $* " != *" launch/pretrain.py "* ]]; then exec {sys.executable} "$@"; fi'
    return executable(directory / "python", f"{other}\ncd {directory}\n{script}")


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)
    return path
