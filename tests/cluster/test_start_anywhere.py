"""Two machines, however training is started on them, learn what one machine learns."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deberta_scale.train.launch_environment import hosts_of
from tests.cluster.conftest import TRAINING, Curve, assert_same, curve, open_mpi, open_mpi_variables
from tests.cluster.slurm_cluster import SlurmCluster
from tests.launching import PRETRAIN, ROOT

BIN = Path(sys.executable).parent

Words = list[str | Path]
Launcher = Callable[[SlurmCluster, Words, Path, int], str]
"""Trains on both nodes by this command (but for Python), so many ranks on each; may write into the directory. Returns
the output.
"""


def job_script(cluster: SlurmCluster, words: Words, directory: Path, ranks: int) -> str:
    output = directory / "job.out"
    options = ["--nodes=2", f"--ntasks-per-node={ranks}", f"--output={output}", f"--chdir={ROOT}"]
    job = cluster.submit(*options, "launch/slurm/pretrain.sbatch", *words[1:], **TRAINING)
    assert cluster.wait_for_end(job)["JobState"] == "COMPLETED", output.read_text()[-4000:]
    return output.read_text()


def bare_srun(cluster: SlurmCluster, words: Words, directory: Path, ranks: int) -> str:
    return cluster.run("srun", "--nodes=2", f"--ntasks-per-node={ranks}", sys.executable, *words, **TRAINING)


def one_torchrun_a_node(cluster: SlurmCluster, words: Words, directory: Path, ranks: int) -> str:
    torchrun = f"{BIN / 'torchrun'} --nnodes=2 --nproc-per-node={ranks} --node-rank=$SLURM_NODEID --master-addr=n1"
    command = ["bash", "-c", f"{torchrun} --master-port=29511 {' '.join(map(str, words))}"]
    return cluster.run("srun", "--nodes=2", "--ntasks-per-node=1", *command, **TRAINING)


def deepspeed_over_ssh(cluster: SlurmCluster, words: Words, directory: Path, ranks: int) -> str:
    """From the login host, with pdsh and an sshd on every node, and without SLURM."""
    hosts, variables = directory / "hosts", directory / "variables"
    hosts.write_text(f"n1 slots={ranks}\nn2 slots={ranks}\n")
    variables.write_text("DS_ACCELERATOR=cpu\n")
    launcher = [BIN / "deepspeed", "--hostfile", hosts, "--master_port", "29512"]
    return cluster.run(*launcher, *words, **TRAINING, DS_ENV_FILE=str(variables))


def mpirun_of_mpich(cluster: SlurmCluster, words: Words, directory: Path, ranks: int) -> str:
    """It starts its daemons with srun."""
    mpirun = [BIN / "mpirun", "-n", str(2 * ranks), "-ppn", str(ranks), sys.executable]
    return cluster.run("salloc", "--quiet", "--nodes=2", f"--ntasks-per-node={ranks}", *mpirun, *words, **TRAINING)


def mpirun_of_open_mpi(cluster: SlurmCluster, words: Words, directory: Path, ranks: int) -> str:
    """So does this one."""
    mpirun = [open_mpi() / "bin" / "mpirun", "-n", str(2 * ranks), "--map-by", f"ppr:{ranks}:node", sys.executable]
    allocation = ["salloc", "--quiet", "--nodes=2", f"--ntasks-per-node={ranks}"]
    return cluster.run(*allocation, *mpirun, *words, **TRAINING, **open_mpi_variables())


@pytest.mark.parametrize(
    ("launcher", "ranks", "started_by"),
    [
        (job_script, 2, "srun"),  # with one rank a node in test_requeue.py
        (bare_srun, 1, "srun"),
        (bare_srun, 2, "srun"),
        (one_torchrun_a_node, 1, "launcher"),
        (one_torchrun_a_node, 2, "launcher"),
        (deepspeed_over_ssh, 1, "launcher"),
        (deepspeed_over_ssh, 2, "launcher"),
        (mpirun_of_mpich, 2, "mpirun"),
        (mpirun_of_open_mpi, 2, "mpirun"),
    ],
)
def test_two_nodes_learn_what_one_machine_learns(
    cluster: SlurmCluster,
    words: Words,
    tmp_path: Path,
    undisturbed: Callable[[int], Curve],
    launcher: Launcher,
    ranks: int,
    started_by: str,
) -> None:
    """Step by step the same samples and losses, with as many ranks on each node as the launcher is asked for."""
    output = launcher(cluster, words, tmp_path, ranks)
    run_dir = tmp_path / "run"
    assert (run_dir / "log.jsonl").exists(), output[-4000:]
    environment = json.loads((run_dir / "environment.json").read_text())
    assert (environment["started_by"], environment["ranks"]) == (started_by, 2 * ranks)
    assert_same(curve(run_dir), undisturbed(2 * ranks))


@pytest.fixture
def words(config_path: Path, tmp_path: Path) -> Words:
    """The command that trains, but for its launcher and Python."""
    return [PRETRAIN, config_path, f"run_dir={tmp_path / 'run'}"]


def test_launchers_that_do_not_know_of_each_other_are_refused(cluster: SlurmCluster, words: Words) -> None:
    """One message for the whole launch, and no run."""
    torchrun = [BIN / "torchrun", "--nproc-per-node=1", f"--master-port={29513}"]
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", *torchrun, *words]
    output = cluster.run(*command, check=False, **TRAINING)
    assert "error: srun started 2 tasks (SLURM_STEP_NUM_TASKS), but GROUP_WORLD_SIZE is 1" in output
    assert output.count("error: srun started") == 1
    assert not Path(str(words[-1]).removeprefix("run_dir=")).exists()


@pytest.mark.parametrize("node_list", ["n1", "n[1-2]", "a[01-03,7],b2", "r[1-2]c[09-11],login", "x[1-2]-ib[3,5]"])
def test_node_lists_are_read_as_slurm_reads_them(cluster: SlurmCluster, node_list: str) -> None:
    assert hosts_of(node_list) == cluster.run("scontrol", "show", "hostnames", node_list).split()
