"""The environment of a process tells its place in the run, or the start is refused."""

import pytest

from deberta_scale.train.distributed import Launch, LaunchError, read_launch

LAUNCHER = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "h",
    "MASTER_PORT": "1",
    "LOCAL_SIZE": "2",
}


def test_launcher_environment_is_read() -> None:
    assert read_launch(LAUNCHER) == Launch(3, 4, 1, 2, "launcher")


def test_no_launcher_is_one_process() -> None:
    assert read_launch({"SLURM_NTASKS": "1"}) == Launch(0, 1, 0, 1, "single process")


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_many_processes_that_do_not_know_each_other_are_refused(name: str) -> None:
    with pytest.raises(LaunchError, match=rf"{name} is 8 but RANK is not set"):
        read_launch({name: "8"})


def test_incomplete_launcher_environment_is_refused_by_name() -> None:
    with pytest.raises(LaunchError, match="MASTER_PORT"):
        read_launch({k: v for k, v in LAUNCHER.items() if k != "MASTER_PORT"})
    with pytest.raises(LaunchError, match=r"RANK 4 is outside 0..3"):
        read_launch(LAUNCHER | {"RANK": "4"})
