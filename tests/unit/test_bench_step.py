"""The step is measured beside those of other models; how fast is no test."""

import json
from pathlib import Path

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


OFFICIAL = """
import types
import torch

class ModelConfig(types.SimpleNamespace):
    @classmethod
    def from_dict(cls, settings):
        return cls(**settings)

class DeBERTa(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embeddings = torch.nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, input_ids, attention_mask):
        return {"hidden_states": [self.embeddings(input_ids) * attention_mask.unsqueeze(-1)]}
"""
"""Stands for the official code, with the names that are asked of it."""


def test_a_trace_and_a_plot_are_written_and_the_official_code_takes_part(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the peers extra is not installed")
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    trace, plot = tmp_path / "trace.json", tmp_path / "cost.png"
    package = tmp_path / "DeBERTa" / "deberta"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(OFFICIAL)
    answer = bench(*SMALL, "--trace", trace, "--plot", plot, "--official", tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "DeBERTa, official code" in answer.stdout
    assert "attention_forward" in answer.stdout, "where the time goes"
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert any("attention_backward" in str(name) for name in names)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_attention_is_measured_beside_other_ways() -> None:
    pytest.importorskip("transformers", reason="the peers extra is not installed")
    answer = bench("attention", "--length", "32", "64", "--tokens", "128", "--turns", "1", "--json")
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    names = [row["name"] for row in result["rows"]]
    assert names[0] == "ours" and "DeBERTa of transformers" in names and len(names) == 2 * len(set(names)) == 10
    assert result["kernel"] == "cpu" and {row["length"] for row in result["rows"]} == {32, 64}


def test_the_head_is_measured_beside_other_ways() -> None:
    pytest.importorskip("transformers", reason="the peers extra is not installed")
    answer = bench("head", "--vocabulary", "1000", "--tokens", "64", "--width", "32", "--turns", "1")
    assert answer.returncode == 0, answer.stderr
    assert "logits of every place" in answer.stdout and "times as fast" in answer.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", "nowhere/cost.png"], "directory that exists"),
        (["--plot", "cost.docx"], "give a .png"),
        (["--trace", "trace.json", "--length", "16", "32"], "give one --length"),
        (["--layers", "1"], "2 or more"),
        (["--official", "nowhere"], "no checkout of microsoft/DeBERTa"),
    ],
)
def test_what_cannot_be_measured_is_refused_before(options: list[str], message: str) -> None:
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    answer = bench("step", *options)
    assert answer.returncode == 1 and message in answer.stderr and "Traceback" not in answer.stderr


def test_official_code_that_lacks_a_package_is_refused_with_its_name(tmp_path: Path) -> None:
    package = tmp_path / "DeBERTa" / "deberta"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import a_package_that_is_missing")
    answer = bench("step", "--official", tmp_path)
    assert answer.returncode == 1 and "No module named 'a_package_that_is_missing'" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_dropout_is_a_probability() -> None:
    answer = bench("step", "--dropout", "1.5")
    assert answer.returncode == 2 and "1.5 is not from 0 to below 1" in answer.stderr


def test_tokens_that_lengths_do_not_divide_are_refused() -> None:
    answer = bench("step", "--length", "48", "--tokens", "64")
    assert answer.returncode == 1 and answer.stderr == (
        "error: --tokens 64 is not a multiple of --length 48; give one that is\n"
    )
