"""Runs of a sweep, and the table made of their results."""

import json
from pathlib import Path

import pytest

from deberta_scale.config import ConfigError
from deberta_scale.finetune.result import Result
from deberta_scale.finetune.sweep import best_run, rows_of, variations, write_table


def result(matthews: float, accuracy: float = 0.5) -> Result:
    values = {"validation/matthews": matthews, "validation/accuracy": accuracy}
    return Result("cola", "validation/matthews", values, step=3, last_step=4, settings={})


def test_all_combinations_are_runs_with_directories_of_their_own() -> None:
    found = variations(["seed=1,2", "optimizer.learning_rate=1e-5,3e-5"])
    assert [variation.name for variation in found] == [
        "seed-1_learning_rate-1e-5",
        "seed-1_learning_rate-3e-5",
        "seed-2_learning_rate-1e-5",
        "seed-2_learning_rate-3e-5",
    ]
    assert found[1].overrides == ["seed=1", "optimizer.learning_rate=3e-5"]


@pytest.mark.parametrize("words", [["seed"], ["=1"], ["seed=1,,2"], ["seed=1,1"], ["seed=1", "seed=2"]])
def test_words_that_are_no_sweep_are_named(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"--sweep '{words[-1]}'"):
        variations(words)


def test_two_runs_never_share_a_directory() -> None:
    with pytest.raises(ConfigError, match="one directory"):
        variations(["task.directory=a/b,a-b"])


def test_runs_that_differ_in_their_seed_are_one_row_and_the_best_row_comes_first(tmp_path: Path) -> None:
    found = [result(0.1), result(0.5, 0.7), result(0.3), result(0.6, 0.9)]
    runs = list(zip(variations(["seed=1,2", "optimizer.learning_rate=1e-5,3e-5"]), found, strict=True))
    first, second = rows_of(runs)
    assert first.settings == {"optimizer.learning_rate": "3e-5"} and first.values == [0.5, 0.6]
    assert first.mean == pytest.approx(0.55) and first.spread == pytest.approx(0.0707, abs=1e-4)
    assert second.mean == pytest.approx(0.2) and second.spread == pytest.approx(0.1414, abs=1e-4)
    table = write_table(tmp_path, runs)
    assert "| optimizer.learning_rate 3e-5 | 0.5500 ± 0.0707 | 2 of 2 | 0.5000 | 0.6000 | 0.8000 |" in table
    assert (tmp_path / "sweep.md").read_text() == table + "\n"
    facts = json.loads((tmp_path / "sweep.json").read_text())
    assert facts["best_model"] == str(tmp_path / "seed-2_learning_rate-3e-5" / "huggingface")
    assert facts["rows"][0]["means"]["validation/accuracy"] == pytest.approx(0.8)


def test_what_is_not_finished_is_counted_and_named(tmp_path: Path) -> None:
    one, two, three = variations(["seed=1,2,3"])
    runs = [(one, result(0.4)), (two, None), (three, None)]
    assert "| all | 0.4000 | 1 of 3 | 0.4000 | 0.4000 | 0.5000 |" in write_table(tmp_path, runs)
    facts = json.loads((tmp_path / "sweep.json").read_text())
    assert facts["rows"][0]["unfinished"] == ["seed-2", "seed-3"] and facts["rows"][0]["spread"] is None


def test_before_the_first_result_there_is_no_best_model(tmp_path: Path) -> None:
    runs = [(variation, None) for variation in variations(["seed=1,2"])]
    assert best_run(runs) is None
    assert "| all | - | 0 of 2 | - | - |" in write_table(tmp_path, runs)
