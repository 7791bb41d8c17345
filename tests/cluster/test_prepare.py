"""Shards made by a job array or by MPI over two nodes are, byte for byte, those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import TRAINING, open_mpi, open_mpi_variables
from tests.cluster.slurm_cluster import SlurmCluster
from tests.launching import ROOT
from tests.reading_shards import digests_of

SLURM = ROOT / "launch" / "slurm"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, prepared_shards: Path, sample_documents: list[str]) -> list[str]:
    """Options of the preparation, but for `--out`; about ten units."""
    text = tmp_path_factory.mktemp("text") / "text.jsonl"
    text.write_text("".join(json.dumps({"text": document}) + "\n" for document in sample_documents))
    return ["--input", str(text), "--tokenizer", str(prepared_shards / "tokenizer"), "--shard-tokens", "16000"]


@pytest.fixture(scope="module")
def expected(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("one") / "shards"
    command = [sys.executable, str(ROOT / "data_prep" / "tokenize_corpus.py"), *words, "--out", str(out)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    return digests_of(out)


def test_job_array(cluster: SlurmCluster, words: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    """As the script's comment says: the array, and after it the same words once."""
    common = [f"--chdir={ROOT}", f"--output={tmp_path}/%A_%a.out", "--cpus-per-task=1"]
    command = [SLURM / "prepare_array.sbatch", *words, "--out", tmp_path / "shards"]
    array = cluster.submit(*common, "--array=0-1", *command, **TRAINING)
    after = [f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes", "--array=0"]
    last = cluster.submit(*common, *after, *command, **TRAINING)
    assert cluster.wait_for_end(last)["JobState"] == "COMPLETED", read(tmp_path)
    assert "share 1 of 2 is done" in read(tmp_path)
    assert digests_of(tmp_path / "shards") == expected


@pytest.mark.parametrize("plugin", ["pmi2", "pmix"])
def test_mpi(cluster: SlurmCluster, words: list[str], expected: dict[str, str], tmp_path: Path, plugin: str) -> None:
    """As the script's comment says: pmi2 for MPICH, pmix for Open MPI."""
    if (problem := cluster.run("srun", f"--mpi={plugin}", "true", check=False)) != "":
        pytest.skip(f"this SLURM has no working --mpi={plugin} (apt-get install libpmix-dev): {problem}")
    variables = {"MPI_PLUGIN": "pmix"} | open_mpi_variables() if plugin == "pmix" else {}
    options = [f"--chdir={ROOT}", f"--output={tmp_path}/job.out", "--nodes=2", "--ntasks=4"]
    command = [SLURM / "prepare_mpi.sbatch", *words, "--out", tmp_path / "shards"]
    job = cluster.submit(*options, *command, **TRAINING, **variables)
    assert cluster.wait_for_end(job)["JobState"] == "COMPLETED", read(tmp_path)
    assert "of 4 (MPI)" in read(tmp_path)
    assert digests_of(tmp_path / "shards") == expected


def test_mpirun_of_open_mpi(cluster: SlurmCluster, words: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    mpirun = [open_mpi() / "bin" / "mpirun", "-n", "4", "--map-by", "ppr:2:node", sys.executable, "-m", "mpi4py"]
    command = [*mpirun, ROOT / "data_prep" / "tokenize_corpus.py", *words, "--out", tmp_path / "shards"]
    allocation = ["salloc", "--quiet", "--nodes=2", "--ntasks-per-node=2"]
    output = cluster.run(*allocation, *command, **TRAINING, **open_mpi_variables())
    assert "of 4 (MPI)" in output
    assert digests_of(tmp_path / "shards") == expected


def read(directory: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in directory.glob("*.out"))
