"""The benchmarks run, measure both sides, and say what they measured. How fast is no test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def bench(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "launch" / "bench.py", *words]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)


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


@pytest.fixture
def little_text(prepared_shards: Path) -> list[str | Path]:
    return ["prepare", "--tokenizer", prepared_shards / "tokenizer", "--megabytes=0.8", "--slow-megabytes=0.5"]


def test_prepare_measures_all_sides_on_the_same_text(little_text: list[str | Path]) -> None:
    answer = bench(*little_text, "--turns=1", "--json")
    assert answer.returncode == 0 and not answer.stderr, answer.stderr
    result = json.loads(answer.stdout)
    sides = result["sides"]
    assert list(sides) == ["ours", "ours, 1 worker", "Pool, lists", "datasets.map", "tokenizers"]
    assert [side["workers"] for side in sides.values()] == [2, 1, 2, 2, 2]
    sentencepieces = [side for name, side in sides.items() if name != "tokenizers"]
    assert {side["tokens"] for side in sentencepieces} == {sides["ours"]["tokens"]}
    assert {side["tokens_more_than_ours"] for side in sentencepieces} == {0}
    assert abs(sides["tokenizers"]["tokens_more_than_ours"]) < 20 < sides["tokenizers"]["tokens"]
    assert sides["tokenizers"]["megabytes"] < sides["ours"]["megabytes"] == result["text"]["megabytes"] < 1
    assert all(0 < side["peak_mib"] < 1024 and side["start_cpu_seconds"] > 0 for side in sides.values())
    assert result["text"]["kind"] == ".jsonl.gz" and result["versions"]["sentencepiece"]


def test_prepare_goes_on_without_a_library_and_says_so(little_text: list[str | Path], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        'import sys\nsys.modules |= dict.fromkeys(("tokenizers", "datasets"))\n', encoding="utf-8"
    )
    answer = bench(*little_text, "--turns=1", "--workers=1", PYTHONPATH=str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    lines = [" ".join(line.split()) for line in answer.stdout.splitlines()]
    assert "datasets.map not installed: datasets" in lines and "tokenizers not installed: tokenizers" in lines
    assert any(line.startswith("Pool, lists") for line in lines) and "tokens: " in answer.stdout


def test_prepare_refuses_what_it_cannot_compare(little_text: list[str | Path], tmp_path: Path) -> None:
    answer = bench(*little_text, "--slow-megabytes=9")
    assert answer.returncode == 1 and "--slow-megabytes 9" in answer.stderr
    blank = tmp_path / "blank.txt"
    blank.write_text("\n\n")
    answer = bench(*little_text, "--input", blank)
    assert answer.returncode == 1 and "blank.txt: no text" in answer.stderr and "Traceback" not in answer.stderr


def test_what_cannot_be_measured_is_said_in_one_message(small: list[str | Path], tmp_path: Path) -> None:
    answer = bench("loader", "--shards", tmp_path)
    assert answer.returncode == 1 and "manifest.json" in answer.stderr and "Traceback" not in answer.stderr
    answer = bench(*small, "--rows=9")
    assert answer.returncode == 1 and "--rows 9 is not a multiple of --micro-sequences 4" in answer.stderr
    answer = bench(*small, "--turns=0")
    assert answer.returncode == 2 and "--turns: 0 is not a positive number" in answer.stderr
    assert bench("nothing").returncode == 2
