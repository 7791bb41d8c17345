"""The same shards, byte for byte, whoever does the work and however often it is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launching import ROOT
from tests.reading_shards import digests_of

TOOL = ROOT / "data_prep" / "tokenize_corpus.py"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, prepared_shards: Path, sample_documents: list[str]) -> list[str]:
    """A dozen units or more."""
    text = tmp_path_factory.mktemp("text") / "text.jsonl"
    text.write_text("".join(json.dumps({"text": document}) + "\n" for document in sample_documents * 2))
    options = ["--input", str(text), "--tokenizer", str(prepared_shards / "tokenizer"), "--shard-tokens", "16000"]
    return [str(TOOL), *options, "--validation-fraction", "0.2", "--out"]


def environment(**variables: str) -> dict[str, str]:
    mpi = ("OMPI_", "PMI_", "PMIX_", "SLURM_", "MPI_")
    return {k: v for k, v in os.environ.items() if not k.startswith(mpi)} | {"PYTHONPATH": str(ROOT)} | variables


def run(words: list[str], **variables: str) -> str:
    result = subprocess.run(
        words, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout[-2000:]
    return result.stdout


def digests_of_finished(out: Path) -> dict[str, str]:
    assert not out.with_name(out.name + ".partial").exists()
    return digests_of(out)


@pytest.fixture(scope="module")
def expected(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("one") / "shards"
    run([sys.executable, *command, str(out)])
    found = digests_of_finished(out)
    assert sum(name.endswith(".bin") for name in found) > 12
    return found


def test_two_processes(command: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    run([sys.executable, *command, str(tmp_path / "shards"), "--workers", "2"])
    assert digests_of_finished(tmp_path / "shards") == expected


def mpirun(num_ranks: int) -> list[str]:
    program = Path(sys.executable).with_name("mpirun")
    if not program.exists():
        pytest.skip("no mpirun beside this Python; install the package mpich")
    return [str(program), "-n", str(num_ranks), sys.executable, "-m", "mpi4py"]


def test_three_mpi_ranks(command: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    output = run([*mpirun(3), *command, str(tmp_path / "shards")])
    assert "share 0 of 3 (MPI)" in output and output.count("wrote ") == 1
    assert digests_of_finished(tmp_path / "shards") == expected


def test_a_job_array_of_three_and_the_same_command_after_it(
    command: list[str], expected: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    for element in ("6", "4", "2"):
        array = {"ID": element, "MIN": "2", "MAX": "6", "STEP": "2", "COUNT": "3"}
        variables = {f"SLURM_ARRAY_TASK_{name}": value for name, value in array.items()}
        assert "is done" in run([sys.executable, *command, str(out)], **variables)
        assert not out.exists()
    units = sorted(path.name for path in (tmp_path / "shards.partial" / "units").iterdir())
    assert units == [f"{number:06d}" for number in range(len(units))]
    run([sys.executable, *command, str(out)])
    assert digests_of_finished(out) == expected


def test_killed_at_random_moments_and_started_again(
    command: list[str], expected: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    moments = random.Random(0)
    kills = 0
    while kills < 10 and not out.exists():
        process = subprocess.Popen(
            [sys.executable, *command, str(out)],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        units = tmp_path / "shards.partial" / "units"
        before = len(list(units.glob("??????"))) if units.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:  # until it has begun or finished a unit
            now = len(list(units.iterdir())) if units.exists() else 0
            if now > before:
                break
        time.sleep(moments.random() * 0.03)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 5 or out.exists()
    run([sys.executable, *command, str(out)])
    assert digests_of_finished(out) == expected


def test_a_finished_result_is_not_made_again(command: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "shards"
    first = run([sys.executable, *command, str(out)])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run([sys.executable, *command, str(out)]).splitlines()[1:] == first.splitlines()[1:]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_what_another_plan_left_is_neither_used_nor_removed(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "shards"
    run([sys.executable, *command, str(out), "--share", "0/2"])
    result = subprocess.run(
        [sys.executable, *command, str(out), "--shard-tokens", "17000"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and "was left by a run with another input, tokenizer or options" in result.stderr
    assert list((tmp_path / "shards.partial" / "units").iterdir())


def test_a_rank_that_fails_ends_all_of_them(command: list[str], tmp_path: Path) -> None:
    text = Path(command[2])
    broken = tmp_path / "broken.jsonl"
    broken.write_text(text.read_text() + "{not json\n" + text.read_text())
    words = [str(broken) if word == str(text) else word for word in command]
    result = subprocess.run(
        [*mpirun(3), *words, str(tmp_path / "shards")], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert result.returncode != 0 and "not valid JSON" in result.stderr
    assert not (tmp_path / "shards").exists()


def test_processes_that_do_not_know_each_other_are_refused(command: list[str], tmp_path: Path) -> None:
    """As when srun starts two tasks without --mpi: each sees a world of one."""
    result = subprocess.run(
        [sys.executable, *command, str(tmp_path / "shards")],
        env=environment(SLURM_NTASKS="2", SLURM_STEP_ID="0", SLURM_PROCID="0"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1 and "2 processes were started, but MPI sees 1" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", ["3/3", "-1/2", "x", "1"])
def test_a_share_that_is_none_is_refused(command: list[str], tmp_path: Path, share: str) -> None:
    result = subprocess.run(
        [sys.executable, *command, str(tmp_path / "shards"), f"--share={share}"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "--share" in result.stderr
