"""Two machines, however training is started on them, learn what one machine learns."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deberta_scale.train.launch_environment import hosts_of
from tests.cluster.conftest import TRAINING, Curve, assert_same, curve
from tests.cluster.slurm_cluster import SlurmCluster
from tests.launching import PRETRAIN, ROOT

BIN = Path(sys.executable).parent


@pytest.fixture
def words(config_path: Path, tmp_path: Path) -> list[str]:
    """The command that trains, but for its launcher and Python."""
    return [str(PRETRAIN), str(config_path), f"run_dir={tmp_path / 'run'}"]


def assert_learned(tmp_path: Path, expected: Curve, output: str) -> None:
    run_dir = tmp_path / "run"
    assert (run_dir / "log.jsonl").exists(), output[-4000:]
    assert_same(curve(run_dir), expected)


def test_the_job_script(
    cluster: SlurmCluster, words: list[str], tmp_path: Path, undisturbed: Callable[[int], Curve]
) -> None:
    """Two nodes with two ranks each."""
    output = tmp_path / "job.out"
    options = ["--nodes=2", "--ntasks-per-node=2", f"--output={output}", f"--chdir={ROOT}"]
    job = cluster.submit(*options, "launch/slurm/pretrain.sbatch", *words[1:], **TRAINING)
    assert cluster.wait_for_end(job)["JobState"] == "COMPLETED", output.read_text()[-4000:]
    assert_learned(tmp_path, undisturbed(4), output.read_text())


def test_mpirun(cluster: SlurmCluster, words: list[str], tmp_path: Path, undisturbed: Callable[[int], Curve]) -> None:
    """Two nodes with two ranks each; MPICH starts its daemons with srun."""
    allocation = ["salloc", "--quiet", "--nodes=2", "--ntasks-per-node=2"]
    mpirun = [BIN / "mpirun", "-n", "4", "-ppn", "2", sys.executable]
    output = cluster.run(*allocation, *mpirun, *words, **TRAINING)
    assert '"started_by": "mpirun"' in (tmp_path / "run" / "environment.json").read_text()
    assert_learned(tmp_path, undisturbed(4), output)


def test_bare_srun(
    cluster: SlurmCluster, words: list[str], tmp_path: Path, undisturbed: Callable[[int], Curve]
) -> None:
    output = cluster.run("srun", "--nodes=2", "--ntasks-per-node=1", sys.executable, *words, **TRAINING)
    assert '"started_by": "srun"' in (tmp_path / "run" / "environment.json").read_text()
    assert_learned(tmp_path, undisturbed(2), output)


def test_one_torchrun_a_node(
    cluster: SlurmCluster, words: list[str], tmp_path: Path, undisturbed: Callable[[int], Curve]
) -> None:
    torchrun = f"{BIN / 'torchrun'} --nnodes=2 --nproc-per-node=1 --node-rank=$SLURM_NODEID --master-addr=n1"
    command = ["bash", "-c", f"{torchrun} --master-port=29511 {' '.join(words)}"]
    output = cluster.run("srun", "--nodes=2", "--ntasks-per-node=1", *command, **TRAINING)
    assert_learned(tmp_path, undisturbed(2), output)


def test_deepspeed_over_ssh(
    cluster: SlurmCluster, words: list[str], tmp_path: Path, undisturbed: Callable[[int], Curve]
) -> None:
    """From the login host, with pdsh and an sshd on every node, and without SLURM."""
    (tmp_path / "hostfile").write_text("n1 slots=1\nn2 slots=1\n")
    (tmp_path / "variables").write_text("DS_ACCELERATOR=cpu\n")
    launcher = [BIN / "deepspeed", "--hostfile", tmp_path / "hostfile", "--master_port", "29512"]
    output = cluster.run(*launcher, *words, **TRAINING, DS_ENV_FILE=str(tmp_path / "variables"))
    assert_learned(tmp_path, undisturbed(2), output)


def test_launchers_that_do_not_know_of_each_other_are_refused(cluster: SlurmCluster, words: list[str]) -> None:
    """One message for the whole launch, and no run."""
    torchrun = [BIN / "torchrun", "--nproc-per-node=1", f"--master-port={29513}"]
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", *torchrun, *words]
    output = cluster.run(*command, check=False, **TRAINING)
    assert "error: srun started 2 tasks (SLURM_STEP_NUM_TASKS), but GROUP_WORLD_SIZE is 1" in output
    assert output.count("error: srun started") == 1
    assert not Path(words[-1].removeprefix("run_dir=")).exists()


@pytest.mark.parametrize("node_list", ["n1", "n[1-2]", "a[01-03,7],b2", "r[1-2]c[09-11],login", "x[1-2]-ib[3,5]"])
def test_node_lists_are_read_as_slurm_reads_them(cluster: SlurmCluster, node_list: str) -> None:
    assert hosts_of(node_list) == cluster.run("scontrol", "show", "hostnames", node_list).split()
