"""The environment of a process tells its place in the run, or the start is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deberta_scale.train.launch_environment import Launch, LaunchError, hosts_of, is_first, read_launch
from tests.launching import PRETRAIN

LAUNCHER = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "h",
    "MASTER_PORT": "1",
    "LOCAL_SIZE": "2",
}


def step(procid: int, node: int, local: int, tasks: str = "2(x2)", num_tasks: int = 4, **more: str) -> dict[str, str]:
    """What srun tells a task: here of two nodes with two tasks each."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "2",
        "SLURM_STEP_NODELIST": "n[07-08]",
        "SLURM_JOB_NODELIST": "n[01-08]",
        "SLURM_NTASKS": str(num_tasks),
        "SLURM_STEP_NUM_TASKS": str(num_tasks),
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_PROCID": str(procid),
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        **more,
    }


def mpich(rank: int, size: int, local_size: int) -> dict[str, str]:
    numbers = {"PMI_RANK": rank, "PMI_SIZE": size, "MPI_LOCALRANKID": rank % local_size, "MPI_LOCALNRANKS": local_size}
    return {name: str(number) for name, number in numbers.items()}


def test_launcher_environment_is_read() -> None:
    assert read_launch(LAUNCHER) == Launch(3, 4, 1, 2, "launcher", "h", 1)


@pytest.mark.parametrize("environment", [{}, {"SLURM_NTASKS": "1"}, step(0, 0, 0, "1", 1), {"PMI_SIZE": "1"}])
def test_no_peers_is_one_process_on_loopback(environment: dict[str, str]) -> None:
    assert read_launch(environment) == Launch(0, 1, 0, 1, "single process", "127.0.0.1")


def test_tasks_of_srun_agree_on_the_first_host_of_the_step_and_a_port_of_the_job() -> None:
    places = [read_launch(step(procid, procid // 2, procid % 2)) for procid in range(4)]
    assert [(p.rank, p.local_rank, p.world_size, p.local_world_size) for p in places] == [
        (0, 0, 4, 2),
        (1, 1, 4, 2),
        (2, 0, 4, 2),
        (3, 1, 4, 2),
    ]
    assert {(p.source, p.master_address) for p in places} == {("srun", "n07")}
    ports = {p.master_port for p in places}
    assert len(ports) == 1 and all(1024 < (port or 0) < 32768 for port in ports)
    other_step = read_launch(step(0, 0, 0) | {"SLURM_STEP_ID": "3"})
    other_job = read_launch(step(0, 0, 0) | {"SLURM_JOB_ID": "4712"})
    assert len(ports | {other_step.master_port, other_job.master_port}) == 3


def test_nodes_of_srun_may_have_different_numbers_of_tasks() -> None:
    launch = read_launch(step(4, 2, 0, "2(x2),1", 5))
    assert (launch.world_size, launch.local_world_size) == (5, 1)


@pytest.mark.parametrize("devices", ["0,1", "", "NoDevFiles"])
def test_tasks_of_srun_see_all_gpus_of_their_node_or_none(devices: str) -> None:
    assert read_launch(step(1, 0, 1, CUDA_VISIBLE_DEVICES=devices)).local_rank == 1


def test_an_address_given_by_hand_comes_first() -> None:
    by_hand = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}
    for environment in (step(0, 0, 0), mpich(0, 4, 2)):
        launch = read_launch(environment | by_hand)
        assert (launch.master_address, launch.master_port) == ("10.0.0.1", 5)


def test_ranks_of_mpirun_agree_later_unless_all_are_here() -> None:
    assert read_launch(mpich(3, 4, 2)) == Launch(3, 4, 1, 2, "mpirun", None, None)
    assert read_launch(mpich(3, 4, 4)) == Launch(3, 4, 3, 4, "mpirun", "127.0.0.1", None)
    values = {"RANK": "1", "SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
    open_mpi = {f"OMPI_COMM_WORLD_{name}": value for name, value in values.items()}
    assert read_launch(open_mpi) == Launch(1, 2, 0, 1, "mpirun", None, None)


def test_srun_with_an_mpi_plugin_is_srun() -> None:
    assert read_launch(step(3, 1, 1, PMI_RANK="3", PMI_SIZE="4")).source == "srun"


def test_mpirun_within_a_job_starts_its_daemons_through_srun_and_is_mpirun() -> None:
    daemons = step(1, 1, 0, "1(x2)", 2)
    assert read_launch(daemons | mpich(3, 4, 2)) == Launch(3, 4, 1, 2, "mpirun", None, None)
    assert read_launch(daemons | mpich(3, 4, 2) | LAUNCHER).source == "launcher", "deepspeed --launcher mpich"


@pytest.mark.parametrize("count", ["GROUP_WORLD_SIZE", "CROSS_SIZE"])
def test_one_torchrun_or_deepspeed_a_node_is_fine(count: str) -> None:
    assert read_launch(step(1, 1, 0, "1(x2)", 2) | LAUNCHER | {count: "2"}).rank == 3


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, "SLURM_NTASKS is 8 but this process is alone.*srun"),
        ({"SLURM_NTASKS": "8", **LAUNCHER}, "SLURM_NTASKS is 8 but WORLD_SIZE is 4"),
        (step(1, 0, 1) | LAUNCHER | {"WORLD_SIZE": "8"}, "srun started 4 tasks .*, but WORLD_SIZE is 8"),
        (step(1, 0, 1) | LAUNCHER | {"CROSS_SIZE": "1"}, "srun started 4 tasks .*, but CROSS_SIZE is 1"),
        (step(1, 0, 1) | LAUNCHER | {"GROUP_WORLD_SIZE": "1"}, "4 tasks .*, but GROUP_WORLD_SIZE is 1.*one a node"),
        (step(1, 0, 1) | mpich(0, 2, 2), "4 tasks .*, but PMI_SIZE is 2: each task has an mpirun of its own"),
        (step(1, 0, 1, CUDA_VISIBLE_DEVICES="0"), "CUDA_VISIBLE_DEVICES is 0, but srun started 2 tasks .*per-node"),
        (step(9, 0, 1), r"SLURM_PROCID 9 is outside 0\.\.3"),
        (step(3, 2, 1), r"SLURM_NODEID is 2, but SLURM_STEP_TASKS_PER_NODE is '2\(x2\)': 2 nodes"),
        (step(3, 1, 1) | {"SLURM_STEP_TASKS_PER_NODE": "two"}, r"is 'two'; expected something like 2\(x3\),1"),
        (step(3, 1, 1) | {"SLURM_LOCALID": "x"}, "SLURM_LOCALID is 'x', which is not a number"),
        ({"PMI_SIZE": "4"}, "PMI_RANK is not set"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK is set but nothing says how many ranks there are"),
        ({k: v for k, v in LAUNCHER.items() if k != "MASTER_PORT"}, "RANK is set but MASTER_PORT is not"),
        (LAUNCHER | {"RANK": "4"}, r"RANK 4 is outside 0\.\.3"),
        (LAUNCHER | {"MASTER_PORT": ""}, "MASTER_PORT is '', which is not a number"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(environment: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        read_launch(environment)


@pytest.mark.parametrize(
    ("node_list", "hosts"),
    [
        ("n1", "n1"),
        ("n[1-3,7],m2", "n1 n2 n3 n7 m2"),
        ("n[08-11]-ib", "n08-ib n09-ib n10-ib n11-ib"),
        ("r[1-2]c[01-02],login", "r1c01 r1c02 r2c01 r2c02 login"),
    ],
)
def test_node_lists_are_written_out(node_list: str, hosts: str) -> None:
    assert hosts_of(node_list) == hosts.split()


@pytest.mark.parametrize("node_list", ["n[1-", "n1]", "n[a-b]", "n[]"])
def test_a_broken_node_list_is_refused(node_list: str) -> None:
    with pytest.raises(LaunchError, match="expected something like"):
        hosts_of(node_list)


def test_one_process_speaks_for_a_launch_that_is_refused() -> None:
    assert [is_first(step(procid, 0, 0)) for procid in range(4)] == [True, False, False, False]
    apart = [step(n, 0, n) | LAUNCHER | {"RANK": "0", "CROSS_SIZE": "1"} for n in range(4)]
    assert [is_first(environment) for environment in apart] == [True, False, False, False]


def test_training_in_a_job_without_srun_is_refused_in_one_line(tmp_path: Path, small_config: str) -> None:
    (tmp_path / "config.yaml").write_text(small_config)
    done = subprocess.run(
        [sys.executable, str(PRETRAIN), str(tmp_path / "config.yaml")],
        env=os.environ | {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: SLURM_NTASKS is 8 but this process is alone")
