"""The model card says what the run's files say, and is silent where they are."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deberta_scale.config import ModelConfig
from deberta_scale.config_file import load
from deberta_scale.convert.model_card import model_card
from deberta_scale.convert.source import Source, Weights, shapes_of
from tests.rows import small_model_config

LOG: list[dict[str, Any]] = [
    {"kind": "train", "step": 10, "loss": 5.43219, "accuracy": 0.1},
    {"kind": "evaluation", "step": 10, "loss": 5.5, "masked_accuracy": 0.1, "unigram_entropy": 5.9},
    {"kind": "train", "step": 12, "loss": 4.98765, "accuracy": 0.2, "epochs": 0.876},
    {"kind": "evaluation", "step": 12, "loss": 5.01234, "masked_accuracy": 0.17, "unigram_entropy": 5.87654},
    {"kind": "train", "step": 13, "loss": 1.11111, "accuracy": 0.9},
]
"""The run went on after the checkpoint of step 12."""


def source_of(config: ModelConfig, **changes: Any) -> Source:
    def unread(name: str) -> Any:
        raise AssertionError("a card needs no weights")

    settings = {"path": Path("model"), "kind": "checkpoint", "weights": Weights(shapes_of(config), unread)}
    return Source(**settings | {"config": config, "tokenizer": None} | changes)  # type: ignore[arg-type]


@pytest.fixture
def run(small_config: str, tmp_path: Path) -> Source:
    """Step 12 of a run of 20, with everything that a run leaves beside its checkpoints."""
    run_dir = tmp_path / "my-run"
    checkpoint = run_dir / "checkpoints" / "step-00000012"
    checkpoint.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(small_config)
    (run_dir / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in LOG) + '{"kind": "tra')
    versions = {"torch": "9.8.7", "python": "3.11.1"}
    (run_dir / "environment.json").write_text(json.dumps({"versions": versions, "ranks": 2, "gpus": [], "host": "h17"}))
    (checkpoint / "state.json").write_text(json.dumps({"step": 12, "data_fingerprint": "fedcba9876543210"}))
    facts = {"step": 12, "run_dir": run_dir}
    return source_of(load(run_dir / "config.yaml").model, path=checkpoint, facts=facts)


@pytest.fixture
def run_on_a_mixture(run: Source) -> Source:
    """The same run, had it read two sources, the second one alone from step 8 on."""
    run_dir = run.facts["run_dir"]
    tree = yaml.safe_load((run_dir / "config.yaml").read_text())
    sources = {name: {"shards": name, "weight": weight, "max_epochs": 5} for name, weight in [("web", 3), ("books", 1)]}
    phases = [{"from_step": step, "weights": {"web": 0, "books": weight}} for step, weight in [(8, 1), (15, 2)]]
    masking = {"compat": "official"}
    tree["data"] = {"mixture": {"sources": sources, "phases": phases}, "sequence_length": 64, "masking": masking}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(tree))
    records = [record | {"epochs/web": 0.5, "epochs/books": 1.25} for record in LOG if record["kind"] == "train"]
    (run_dir / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    cleaning = {"all": {"documents": 20}, "min_document_characters": {"documents_dropped": 1234}}
    cleaning |= {"language": {"documents_dropped": 0}, "unicode_form": {"documents_changed": 9}}
    repeats = {"repeated_paragraphs": {"documents_dropped": 5, "paragraphs_dropped": 67}}
    web = {"cleaning": cleaning, "deduplication": repeats}
    (run_dir / "data.json").write_text(json.dumps({"web": web, "books": {"cleaning": {}}}))
    return run


def test_of_a_mixture_sources_weights_epochs_and_filters_are_told(run_on_a_mixture: Source) -> None:
    rows = table(model_card(run_on_a_mixture, "sentencepiece"))
    assert rows["source web"] == "weight 3, from step 8 0; 50.00% of the samples; read 0.50 times by step 12"
    assert rows["source books"] == "weight 1, from step 8 1; 50.00% of the samples; read 1.25 times by step 12"
    assert rows["left out of web"] == (
        "1,234 documents by min_document_characters, 5 documents by repeated_paragraphs,"
        " 67 paragraphs by repeated_paragraphs"
    )
    assert "left out of books" not in rows
    assert rows["masking"].endswith("; chosen as the released code does, with its bias")


def front_matter(card: str) -> dict[str, Any]:
    empty, head, body = card.split("---\n", 2)
    assert empty == ""
    assert body.startswith("\n# ")
    parsed: dict[str, Any] = yaml.safe_load(head)
    return parsed


def table(card: str) -> dict[str, str]:
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ") and line != "| | |"]
    return {name: value for name, value in rows}


def test_numbers_are_those_of_the_files(run: Source) -> None:
    card = model_card(run, "sentencepiece")
    assert "\n# my-run, step 12\n" in card
    rows = table(card)
    assert rows["data fingerprint"] == "`fedcba9876543210`"
    assert rows["steps"] == "12 of 20"
    assert rows["batch"] == "16 sequences of 64, packed best_fit"
    assert rows["token places read"] == f"{12 * 16 * 64:,}"
    assert rows["optimizer"].startswith("AdamW, learning rate 0.01, betas 0.9 and 0.999, eps 1e-06, weight decay 0.01")
    assert rows["schedule"] == "linear, 2 steps of warm-up, down to 0 of the rate"
    assert rows["precision"] == "fp32, ZeRO stage 3"
    assert rows["training loss at step 12"] == "4.9877 nats a predicted token"
    assert rows["held-out loss at step 12"] == "5.0123 nats"
    assert rows["held-out masked accuracy at step 12"] == "0.1700"
    assert rows["loss of guessing by frequency alone"] == "5.8765 nats"
    assert rows["epochs at step 12"] == "0.88"
    assert rows["masking"].endswith("as another piece")
    assert rows["versions"] == "torch 9.8.7, python 3.11.1"
    assert rows["ranks"] == "2"
    assert "h17" not in card, "where it was trained is nobody's business"
    assert str(run.facts["run_dir"].parent) not in card
    assert model_card(run, "sentencepiece") == card


def test_what_no_file_tells_is_not_in_the_card(run: Source) -> None:
    for name in ("log.jsonl", "environment.json", "checkpoints/step-00000012/state.json"):
        (run.facts["run_dir"] / name).unlink()
    rows = table(model_card(run, "sentencepiece"))
    assert rows.keys() == {"steps", "batch", "token places read", "masking", "optimizer", "schedule", "precision"}
    (run.facts["run_dir"] / "environment.json").write_text("{")
    assert table(model_card(run, "sentencepiece")) == rows


def test_a_source_that_is_not_of_a_run_has_no_training_section() -> None:
    card = model_card(
        source_of(small_model_config(), path=Path("/models/deberta-v9"), kind="official checkpoint"), None
    )
    assert "\n# deberta-v9\n" in card
    assert "official checkpoint `deberta-v9`" in card
    assert "/models" not in card
    assert "## Training" not in card


def test_the_front_matter_is_what_hubs_read(run: Source) -> None:
    assert front_matter(model_card(run, "sentencepiece")) == {
        "library_name": "transformers",
        "license": "unknown",
        "pipeline_tag": "fill-mask",
        "mask_token": "[MASK]",
        "tags": ["deberta", "deberta-v2", "deberta-scale"],
    }


def test_an_encoder_alone_is_not_offered_for_filling_masks() -> None:
    whole = source_of(small_model_config())
    encoder = {name: shape for name, shape in whole.weights.shapes.items() if "lm_predictions" not in name}
    source = dataclasses.replace(whole, weights=Weights(encoder, whole.weights.read))
    card = model_card(source, "sentencepiece", ("it has no head", "and it ends with a full stop."))
    assert front_matter(card)["pipeline_tag"] == "feature-extraction"
    assert "mask_token" not in front_matter(card)
    assert "pipeline(" not in card
    assert "trust_remote_code=True" not in card
    assert "- Note: it has no head.\n- Note: and it ends with a full stop.\n" in card


@pytest.mark.parametrize(
    ("model", "said", "unsaid"),
    [
        (small_model_config(), ["more than 64 tokens", "±63", "Stock masked language modelling"], []),
        (small_model_config(position_buckets=0), ["Stock masked language modelling"], ["tokens.**"]),
        (ModelConfig(vocab_size=90, baseline=True), ["BERT-like baseline"], ["Stock masked", "tokens.**"]),
    ],
)
def test_only_differences_that_the_model_has_are_told(model: ModelConfig, said: list[str], unsaid: list[str]) -> None:
    card = model_card(source_of(model), "sentencepiece")
    assert [text for text in said if text not in card] == []
    assert [text for text in unsaid if text in card] == []


@pytest.mark.parametrize(
    ("kind", "said", "unsaid"),
    [
        ("sentencepiece", ["AutoTokenizer", "**Tokenizer.**", "**Sentencepiece.**", '["▁kind"'], []),
        ("byte_pair", ["AutoTokenizer", "**Tokenizer.**", '["Ġkind"'], ["entencepiece"]),
        (None, ["AutoModel"], ["AutoTokenizer", "**Tokenizer.**", "pipeline(", "fill_mask"]),
    ],
)
def test_of_tokenizers_only_what_is_there(kind: str | None, said: list[str], unsaid: list[str]) -> None:
    card = model_card(source_of(small_model_config()), kind)
    assert [text for text in said if text not in card] == []
    assert [text for text in unsaid if text in card] == []
