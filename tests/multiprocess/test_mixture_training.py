"""A run on several sources: what it says of them, what it refuses, and that ranks do not change it."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.inputs import Reading, find_inputs
from data_prep.tokenize_corpus import tokenize
from tests.launching import PRETRAIN, read_log, start


@pytest.fixture
def mixture(prepared_shards: Path, sample_documents: list[str], tmp_path: Path) -> dict[str, Any]:
    """Two sources: the usual shards, and paragraphs of the same books."""
    text = tmp_path / "paragraphs.jsonl"
    paragraphs = [p for document in sample_documents[:20] for p in document.split("\n") if p]
    text.write_text("".join(json.dumps({"text": paragraph}) + "\n" for paragraph in paragraphs))
    shards = tmp_path / "paragraphs"
    tokenize(find_inputs([text]), Reading(), prepared_shards / "tokenizer", shards, validation_fraction=0.2)
    sources = {
        "books": {"shards": str(prepared_shards), "weight": 0.75, "max_epochs": 5},
        "paragraphs": {"shards": str(shards), "weight": 0.25, "max_epochs": 5},
    }
    return {"sources": sources, "phases": [{"from_step": 4, "weights": {"books": 0, "paragraphs": 1}}]}


def pretrain(tmp_path: Path, small_config: str, mixture: dict[str, Any], *options: str, ranks: int = 2) -> Any:
    path = tmp_path / "config.yaml"
    path.write_text(small_config)
    words = [f"run_dir={tmp_path / 'run'}", "data.shards=null", f"data.mixture={json.dumps(mixture)}"]
    words += ["train.steps=8", "train.evaluate_every_steps=4", "train.save_every_steps=4"]
    return start(ranks, PRETRAIN, path, *words, *options).wait()


def test_epochs_and_held_out_losses_are_reported_by_source(
    tmp_path: Path, small_config: str, mixture: dict[str, Any]
) -> None:
    codes, outputs = pretrain(tmp_path, small_config, mixture)
    assert codes == [0, 0], outputs[0][-3000:]
    train, evaluation = (read_log(tmp_path / "run", kind) for kind in ("train", "evaluation"))
    epochs = [(record["epochs/books"], record["epochs/paragraphs"]) for record in train]
    assert epochs[3][0] > 0 and epochs[7][0] == epochs[3][0], "not read any more from step 4 on"
    assert epochs[7][1] > 2 * epochs[3][1]
    assert f"epochs: books {epochs[7][0]:.2f}, paragraphs {epochs[7][1]:.2f} in the whole run" in outputs[0]
    low, high = sorted((evaluation[-1]["loss/books"], evaluation[-1]["loss/paragraphs"]))
    assert low < evaluation[-1]["loss"] < high
    assert "paragraphs: " in outputs[0] and f"epochs books {epochs[7][0]:.2f}" in outputs[0]

    one_rank = tmp_path / "one"
    one_rank.mkdir()
    codes, outputs = pretrain(one_rank, small_config, mixture, ranks=1)
    assert codes == [0], outputs[0][-3000:]
    digests = [record["sample_digest"] for record in train]
    assert [record["sample_digest"] for record in read_log(one_rank / "run")] == digests


def test_too_many_epochs_and_other_weights_are_refused_before_the_first_step(
    tmp_path: Path, small_config: str, mixture: dict[str, Any]
) -> None:
    mixture["sources"]["books"]["max_epochs"] = 0.01
    codes, outputs = pretrain(tmp_path, small_config, mixture)
    assert codes == [1, 1] and "Traceback" not in "".join(outputs)
    assert "error: data.mixture.sources.books: 8 steps of 16 sequences read it" in outputs[0]
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    mixture["sources"]["books"]["max_epochs"] = 5
    assert pretrain(tmp_path, small_config, mixture)[0] == [0, 0]
    mixture["sources"]["books"]["weight"] = 0.5
    codes, outputs = pretrain(tmp_path, small_config, mixture, "train.steps=9")
    assert codes == [1, 1]
    assert "data.mixture.sources.books.weight: the checkpoint has 0.75, the config 0.5" in outputs[0]
