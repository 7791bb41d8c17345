"""The benchmarks run, measure both sides, and say what they measured. How fast is no test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def bench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "launch" / "bench.py", *words]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)


@pytest.fixture
def small(prepared_shards: Path) -> list[str | Path]:
    sizes = ["--sequence-length=64", "--rows=8", "--micro-sequences=4", "--slow-rows=2", "--turns=2"]
    return ["loader", "--shards", prepared_shards, *sizes]


def test_loader_measures_three_sides_on_the_same_rows(small: list[str | Path]) -> None:
    answer = bench(*small, "--json")
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert list(result["sides"]) == ["loader", "plain twin", "official way"]
    assert all(0 < s["slowest"] <= s["mtok_per_cpu_second"] <= s["fastest"] for s in result["sides"].values())
    assert result["batch"]["token_ids"] == "[4, 64] torch.int64" and result["threads"] == 1
    assert 0 <= result["padding"] < 0.1 and result["sample_1e9_milliseconds"] > 0


def test_loader_says_it_for_people(small: list[str | Path]) -> None:
    answer = bench(*small)
    assert answer.returncode == 0, answer.stderr
    for expected in ("Mtok / CPU s", "the loader is", "times as fast", "token_ids [4, 64] torch.int64", "padding"):
        assert expected in answer.stdout


def test_what_cannot_be_measured_is_said_in_one_message(small: list[str | Path], tmp_path: Path) -> None:
    answer = bench("loader", "--shards", tmp_path)
    assert answer.returncode == 1 and "manifest.json" in answer.stderr and "Traceback" not in answer.stderr
    answer = bench(*small, "--rows=9")
    assert answer.returncode == 1 and "--rows 9" in answer.stderr
    assert bench("nothing").returncode == 2
