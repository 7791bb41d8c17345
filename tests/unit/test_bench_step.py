"""The step is measured beside those of other models; how fast is no test."""

import json

import pytest

from tests.unit.test_bench import bench

SMALL = ["step", "--length", "32", "--tokens", "64", "--layers", "2", "--turns", "1"]


def test_step_measures_all_sides_at_the_same_shape() -> None:
    pytest.importorskip("transformers", reason="the peers extra is not installed")
    answer = bench(*SMALL, "--whole", "--dropout", "0.1", "--json")
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    rows = {row["name"]: row for row in result["rows"]}
    assert next(iter(rows)) == "ours" and len(rows) == 4
    for row in rows.values():
        assert 0 < row["fastest"] <= row["milliseconds"] <= row["slowest"]
        assert row["tokens_per_second"] == pytest.approx(64e3 / row["milliseconds"])
        assert row["peak_mib"] > 0 and (row["length"], row["rows"]) == (32, 2)
    assert 0 < rows["ours"]["share_of_peak"] < 1.5 and result["dropout"] == 0.1


def test_tokens_that_lengths_do_not_divide_are_refused() -> None:
    answer = bench("step", "--length", "48", "--tokens", "64")
    assert answer.returncode == 1 and answer.stderr == (
        "error: --tokens 64 is not a multiple of --length 48; give one that is\n"
    )
