"""A fine-tuned model answers the same in stock transformers as here, and what does not fit is not exported."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deberta_scale.convert.finetuned import TOKENS_NOTE, export
from deberta_scale.convert.finetuned_source import load_head, open_finetuned
from deberta_scale.convert.source import ConversionError, Weights
from tests.finetuned import finetuned, random_head

transformers = pytest.importorskip("transformers", reason="the peer to compare with; pip install '.[peers]'")

STOCK = {
    "mnli": "SequenceClassification",
    "sts-b": "SequenceClassification",
    "swag": "MultipleChoice",
    "squad-2.0": "QuestionAnswering",
}
LENGTH, SHORT = 40, 23


@pytest.fixture(scope="module")
def tokenizer(prepared_shards: Path) -> Path:
    return prepared_shards / "tokenizer"


def rows(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and 1 for text; the last row is padded."""
    token_ids = torch.randint(4, 600, (*shape, LENGTH), generator=torch.Generator().manual_seed(0))
    is_text = torch.ones_like(token_ids)
    token_ids[-1, ..., SHORT:], is_text[-1, ..., SHORT:] = 0, 0
    return token_ids, is_text


def stock_answers(model: Any, token_ids: torch.Tensor, is_text: torch.Tensor) -> Any:
    return model.eval()(input_ids=token_ids, attention_mask=is_text)


def loaded(directory: Path, kind: str, **settings: Any) -> Any:
    automatic = getattr(transformers, f"AutoModelFor{kind}")
    model, loading = automatic.from_pretrained(directory, output_loading_info=True, **settings)
    assert not loading["missing_keys"] and not loading["mismatched_keys"]
    assert set(loading["unexpected_keys"]) <= {"deberta.embeddings.position_embeddings.weight"}
    return model


@pytest.mark.parametrize("task_name", STOCK)
@torch.no_grad()
def test_stock_classes_give_our_logits(tokenizer: Path, tmp_path: Path, task_name: str) -> None:
    head = random_head(task_name)
    assert export(finetuned(task_name, head, tokenizer), tmp_path / "out") == ()
    stock = loaded(tmp_path / "out", STOCK[task_name])
    assert type(stock) is getattr(transformers, f"DebertaV2For{STOCK[task_name]}")
    token_ids, is_text = rows(2, 4) if task_name == "swag" else rows(3)
    expected, found = head(token_ids, is_text), stock_answers(stock, token_ids, is_text)
    if task_name == "squad-2.0":
        places = is_text.bool()
        torch.testing.assert_close(found.start_logits[places], expected[0][places], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.end_logits[places], expected[1][places], rtol=0, atol=1e-5)
    else:
        torch.testing.assert_close(found.logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_labelled_words_have_our_logits_with_the_file_that_comes_along(tokenizer: Path, tmp_path: Path) -> None:
    head = random_head("conll-2003")
    assert export(finetuned("conll-2003", head, tokenizer), tmp_path / "out") == (TOKENS_NOTE,)
    model = loaded(tmp_path / "out", "TokenClassification", trust_remote_code=True)
    token_ids, is_text = rows(3)
    found = stock_answers(model, token_ids, is_text).logits
    torch.testing.assert_close(found[is_text.bool()], head(token_ids, is_text)[is_text.bool()], rtol=0, atol=1e-5)
    assert model.config.id2label[1] == "B-MISC"
    assert TOKENS_NOTE in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("task_name", "labels", "problem_type"),
    [
        ("mnli", {0: "contradiction", 1: "neutral", 2: "entailment"}, "single_label_classification"),
        ("cola", {0: "unacceptable", 1: "acceptable"}, "single_label_classification"),
        ("sts-b", {0: "LABEL_0"}, "regression"),
    ],
)
def test_stock_knows_labels_loss_and_dropout(
    tokenizer: Path, tmp_path: Path, task_name: str, labels: dict[int, str], problem_type: str
) -> None:
    head = random_head(task_name, hidden_dropout_prob=0.15)
    export(finetuned(task_name, head, tokenizer, head_dropout=0.25), tmp_path / "out")
    stock = loaded(tmp_path / "out", "SequenceClassification")
    assert stock.config.id2label == labels
    assert stock.config.label2id == {name: number for number, name in labels.items()}
    assert stock.config.problem_type == problem_type
    assert (stock.pooler.dropout.p, stock.dropout.p) == (0.15, 0.25)
    assert open_finetuned(tmp_path / "out").head_dropout == 0.25


@pytest.mark.parametrize("task_name", [*STOCK, "conll-2003"])
@torch.no_grad()
def test_what_was_written_is_read_again(tokenizer: Path, tmp_path: Path, task_name: str) -> None:
    model = finetuned(task_name, random_head(task_name), tokenizer, max_length=48)
    export(model, tmp_path / "out")
    again = open_finetuned(tmp_path / "out")
    assert (again.description, again.config) == (model.description, model.config)
    assert again.description.max_length == 48
    assert again.description.stride_tokens == (16 if task_name == "squad-2.0" else None)
    saved = load_head(again).state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.weights)


def test_the_tokenizer_of_the_directory_is_that_of_training(tokenizer: Path, tmp_path: Path) -> None:
    export(finetuned("mnli", random_head("mnli"), tokenizer), tmp_path / "out")
    stock = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert stock.convert_ids_to_tokens(stock("it is", "so").input_ids)[0] == "[CLS]"


def test_the_card_says_task_labels_and_what_was_measured(tokenizer: Path, tmp_path: Path) -> None:
    model = finetuned("cola", random_head("cola"), tokenizer, results={"validation matthews": 0.61234})
    export(model, tmp_path / "my-model")
    card = (tmp_path / "my-model" / "README.md").read_text()
    assert "\n# my-model\n" in card and "task `cola`" in card
    assert "pipeline_tag: text-classification" in card
    assert "`unacceptable`, `acceptable`" in card
    assert "| validation matthews | 0.6123 |" in card
    assert "AutoModelForSequenceClassification.from_pretrained(directory)" in card
    assert str(tmp_path) not in card


def without(model: Any, name: str) -> Any:
    kept = {key: shape for key, shape in model.weights.shapes.items() if key != name}
    return dataclasses.replace(model, weights=Weights(kept, model.weights.read))


def test_refusals_leave_nothing_behind(tokenizer: Path, tmp_path: Path) -> None:
    model, out = finetuned("mnli", random_head("mnli"), tokenizer), tmp_path / "out"
    with pytest.raises(ConversionError, match=r"classifier\.bias is missing; weights, config and task do not"):
        export(without(model, "classifier.bias"), out)
    for_two = finetuned("mnli", random_head("rte"), tokenizer)
    with pytest.raises(ConversionError, match=r"classifier\.bias has shape \(2,\); config and labels give \(3,\)"):
        export(for_two, out)
    with pytest.raises(ConversionError, match=r"classifier\.bias is no tensor of a span head"):
        export(finetuned("squad-1.1", random_head("mnli"), tokenizer), out)
    small = finetuned("mnli", random_head("mnli", vocab_size=90), tokenizer)
    with pytest.raises(ConversionError, match="601 ids, the model 90 rows"):
        export(small, out)
    wide = finetuned("mnli", random_head("mnli", attention_head_size=24), tokenizer)
    with pytest.raises(ConversionError, match="attention_head_size 24 is not hidden_size 32"):
        export(wide, out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version is 2, expected 1"),
        ({"head": "poem"}, "head is 'poem', expected one of classification, regression"),
        ({"labels": ["a", "b"]}, r"classifier\.bias has shape \(3,\); config and labels give \(2,\)"),
        ({"labels": 3}, "not what an export of a fine-tuned model writes"),
        ({"max_length": "long"}, "max_length and stride_tokens numbers"),
    ],
)
def test_a_directory_that_was_changed_is_refused(
    tokenizer: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    export(finetuned("mnli", random_head("mnli"), tokenizer), tmp_path / "out")
    path = tmp_path / "out" / "finetuning.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConversionError, match=message):
        open_finetuned(tmp_path / "out")
