"""Duplicates of two sources are omitted in the same way, byte for byte, whoever does which pass and is killed when."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.mixture_file import MIXTURE_FILE
from deberta_scale.data.shards import ShardSet
from tests.launching import ROOT
from tests.reading import json_lines, write
from tests.reading_shards import digests_of

TOOL = ROOT / "data_prep" / "tokenize_corpus.py"
NUM_PASSES = 3


def edited(document: str, every: int) -> str:
    return " ".join("edit" if n % every == every - 1 else word for n, word in enumerate(document.split(" ")))


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, prepared_shards: Path, sample_documents: list[str]) -> list[str]:
    """Two sources of two files, a dozen units or more, with everything looked for."""
    pytest.importorskip("datasketch", reason="the extra `prepare` is not installed")
    directory = tmp_path_factory.mktemp("text")
    notice = "This very notice stands below each and every one of the documents of this source."
    for name, texts in {
        "novels-1": sample_documents[:24],
        "novels-2": [*sample_documents[24:40], *sample_documents[8:12]],
        "web-1": [f"{document}\n{notice}" for document in sample_documents[40:]],
        "web-2": [*sample_documents[:4], *(edited(document, 150) for document in sample_documents[44:52])],
    }.items():
        write(directory / f"{name}.jsonl", json_lines(*texts))
    description = write(
        directory / "data.yaml",
        f"tokenizer: {prepared_shards / 'tokenizer'}\nvalidation_fraction: 0.2\nsources:\n"
        f"  novels: {{paths: ['{directory}/novels-*.jsonl']}}\n  web: {{paths: ['{directory}/web-*.jsonl']}}\n"
        "deduplication: {documents: true, paragraphs: true}\nnear_duplicates: {threshold: 0.7}\n",
    )
    return [str(TOOL), "--data", str(description), "--shard-tokens", "16000", "--out"]


def environment(**variables: str) -> dict[str, str]:
    launchers = ("OMPI_", "PMI_", "PMIX_", "SLURM_", "MPI_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    return kept | {"PYTHONPATH": str(ROOT)} | variables


def run(words: list[str], **variables: str) -> str:
    result = subprocess.run(
        words, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout[-2000:]
    return result.stdout


def digests_of_shards(out: Path) -> dict[str, str]:
    """Of all files but the mixture's, which names the place."""
    return {name: digest for name, digest in digests_of(out).items() if name != MIXTURE_FILE}


@pytest.fixture(scope="module")
def expected(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("one") / "shards"
    run([sys.executable, *command, str(out)])
    assert [path.name for path in out.parent.iterdir()] == ["shards"]
    left = {name: json.loads((out / name / "preparation.json").read_text()) for name in ("novels", "web")}
    dropped = {
        name: [
            told["deduplication"][f"{why}_documents"]["documents_dropped"] for why in ("duplicate", "near_duplicate")
        ]
        for name, told in left.items()
    }
    assert dropped == {"novels": [4, 0], "web": [4, 8]}
    assert left["web"]["deduplication"]["duplicate_paragraphs"]["paragraphs_dropped"] == 19
    assert sum(ShardSet(out / name / "train").num_shards for name in left) > 10
    return digests_of_shards(out)


def test_two_processes(command: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    run([sys.executable, *command, str(tmp_path / "shards"), "--workers", "2"])
    assert digests_of_shards(tmp_path / "shards") == expected


def test_three_mpi_ranks(command: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("mpirun")
    if not program.exists():
        pytest.skip("no mpirun beside this Python; install the package mpich")
    output = run([str(program), "-n", "3", sys.executable, "-m", "mpi4py", *command, str(tmp_path / "shards")])
    assert output.count("wrote ") == 3 and output.count("looking for duplicates in 4 file(s)") == 1
    assert digests_of_shards(tmp_path / "shards") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_job_array_for_every_pass_and_the_same_command_after_them(
    command: list[str], expected: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    for number in range(1, NUM_PASSES + 1):
        said = []
        for element in ("2", "0", "1"):
            array = {"ID": element, "MIN": "0", "MAX": "2", "COUNT": "3"}
            variables = {f"SLURM_ARRAY_TASK_{name}": value for name, value in array.items()}
            said.append(run([sys.executable, *command, str(out)], **variables))
        if number < NUM_PASSES:
            assert f"share 2 of 3 is done with pass {number} of {NUM_PASSES}" in said[0]
            assert "start all of them again by the same commands, for pass" in said[0]
        else:
            assert all("the same command without --share or array puts the result together" in text for text in said)
        assert not (out / "novels").exists()
    run([sys.executable, *command, str(out)])
    assert digests_of_shards(out) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_one_command_after_the_first_array_does_all_that_is_left(
    command: list[str], expected: dict[str, str], tmp_path: Path
) -> None:
    run([sys.executable, *command, str(tmp_path / "shards"), "--share", "1/3"])
    run([sys.executable, *command, str(tmp_path / "shards")])
    assert digests_of_shards(tmp_path / "shards") == expected


def test_killed_at_random_moments_and_started_again(
    command: list[str], expected: dict[str, str], tmp_path: Path
) -> None:
    """R8."""
    out = tmp_path / "shards"
    moments = random.Random(0)

    def num_entries() -> int:
        return sum(len(names) + len(directories) for _, directories, names in os.walk(tmp_path))

    kills, kills_in = 0, set()
    while kills < 20 and not (out / "web").exists():
        process = subprocess.Popen(
            [sys.executable, *command, str(out)],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before, further = num_entries(), moments.randrange(1, 120)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and num_entries() < before + further:
            pass  # until it has written that many files
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        kills_in |= {path.name for path in (tmp_path / "shards.repeats.partial").glob("*")}
    assert kills >= 4 and {"digests", "merged", "paragraphs"} <= kills_in
    run([sys.executable, *command, str(out)])
    assert digests_of_shards(out) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
