"""Fine-tuned models, ours and others, are asked, measured and averaged as they should be, or refused with a reason."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deberta_scale.convert.finetuned import export
from deberta_scale.evaluation.answers import Answer
from deberta_scale.evaluation.measured import Measured, measure
from deberta_scale.evaluation.models import open_model
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.readers_split import read_split
from deberta_scale.finetune.tasks import TASKS
from launch import evaluate
from tests.benchmark_files import write_benchmark
from tests.exporting import export_all
from tests.finetuned import finetuned, random_head

transformers = pytest.importorskip("transformers", reason="the peer to compare with; pip install '.[peers]'")

SENTENCES = [
    "It is a truth universally acknowledged",
    "Mr. Bennet was among the earliest of those who waited on Mr. Bingley, and he had always intended to visit him",
    "She was very happy",
    "that a single man in possession of a good fortune must be in want of a wife, said the lady to her husband",
]
LABELS = ("entailment", "not_entailment", "not_entailment", "entailment")


def write_data(folder: Path) -> Path:
    """A small split of a task of each kind in a folder of its name; some texts of rte are too long for the models."""
    for name in ("sts-b", "swag", "squad-2.0", "conll-2003"):
        write_benchmark(name, folder / name)
    pairs = list(zip(SENTENCES, reversed(SENTENCES), LABELS, strict=True))
    pairs[1] = (" ".join(SENTENCES), SENTENCES[2], LABELS[1])
    rows = [f"{number}\t{one}\t{other}\t{label}\n" for number, (one, other, label) in enumerate(pairs)]
    (folder / "rte").mkdir()
    (folder / "rte" / "dev.tsv").write_text("".join(["index\tsentence1\tsentence2\tlabel\n", *rows]))
    (folder / "rte" / "test.tsv").write_text("index\tsentence1\tsentence2\n7\tIt is\tShe was\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tokenizer(prepared_shards: Path) -> Path:
    return prepared_shards / "tokenizer"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """A directory for each task."""
    parent = tmp_path_factory.mktemp("ours")
    for name in ("rte", "sts-b", "swag", "squad-2.0", "conll-2003"):
        export(finetuned(name, random_head(name), tokenizer), parent / name)
    return parent


def small(kind: str, **settings: Any) -> dict[str, Any]:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    more = {"type_vocab_size": 1} if kind == "Roberta" else {}
    return shape | more | {"max_position_embeddings": 64, "initializer_range": 0.5} | settings


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """WordPiece and byte-level pairs: tokenizers that cut otherwise than ours."""
    from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("vocabularies")
    pieces, pairs = BertWordPieceTokenizer(lowercase=True), ByteLevelBPETokenizer()
    pieces.train_from_iterator(SENTENCES * 5, vocab_size=150)
    pairs.train_from_iterator(SENTENCES * 5, vocab_size=330, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    pieces.save_model(str(folder))
    pairs.save_model(str(folder))
    return {
        "Bert": transformers.BertTokenizer(vocab=str(folder / "vocab.txt")),
        "Roberta": transformers.RobertaTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")),
    }


def save_foreign(directory: Path, vocabularies: Mapping[str, Any], kind: str, head: str, **settings: Any) -> Path:
    """A model of another architecture with random weights and its tokenizer."""
    torch.manual_seed(4)
    of_kind = vocabularies[kind]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(of_kind) + 8, pad_token_id=of_kind.pad_token_id, **small(kind, **settings)
    )
    getattr(transformers, f"{kind}For{head}")(config).save_pretrained(directory)
    of_kind.save_pretrained(directory)
    return directory


def asked(directory: Path, task_name: str, data: Path, batch: int = 3) -> tuple[list[Example], Measured]:
    task = TASKS[task_name]
    examples = read_split(task, data / task_name, "validation").examples
    return examples, measure(open_model(directory, task), task, examples, batch)


def assert_same(found: list[Answer], expected: list[Answer]) -> None:
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, Mapping):
            assert isinstance(other, Mapping)
            assert one.keys() == other.keys()
            one, other = np.array([one[span] for span in other]), np.array(list(other.values()))
        np.testing.assert_allclose(one, np.asarray(other), rtol=0, atol=1e-4)


@pytest.mark.parametrize("task_name", ["rte", "sts-b", "swag", "squad-2.0"])
def test_transformers_answers_as_we_do_from_the_same_directory(
    ours: Path, data: Path, tmp_path: Path, task_name: str
) -> None:
    shutil.copytree(ours / task_name, tmp_path / "stock", ignore=shutil.ignore_patterns("finetuning.json"))
    _, expected = asked(ours / task_name, task_name, data)
    _, found = asked(tmp_path / "stock", task_name, data)
    assert found.num_rows == expected.num_rows
    assert_same(found.answers, expected.answers)


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
@torch.no_grad()
def test_another_architecture_answers_as_when_asked_alone(
    vocabularies: Mapping[str, Any], data: Path, tmp_path: Path, kind: str
) -> None:
    names = {0: "entailment", 1: "not_entailment"}  # not the task's order
    save_foreign(tmp_path / "model", vocabularies, kind, "SequenceClassification", id2label=names)
    examples, found = asked(tmp_path / "model", "rte", data)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    cut_by = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    num_cut = 0
    for example, answer in zip(examples, found.answers, strict=True):
        most = 64 if kind == "Bert" else 64 - cut_by.pad_token_id - 1
        num_cut += len(cut_by(*example.texts).input_ids) > most
        inputs = cut_by(*example.texts, return_tensors="pt", truncation=True, max_length=most)
        entailment, other = model(**inputs).logits.log_softmax(-1)[0].tolist()
        np.testing.assert_allclose(np.asarray(answer), [other, entailment], rtol=0, atol=1e-5)
    assert found.num_cut == num_cut > 0
    assert f"{num_cut} of 4 texts are longer than" in found.notes[0]


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
@torch.no_grad()
def test_words_are_labelled_at_their_first_token(
    vocabularies: Mapping[str, Any], data: Path, tmp_path: Path, kind: str
) -> None:
    names = dict(enumerate(reversed(TASKS["conll-2003"].labels.names)))
    save_foreign(tmp_path / "model", vocabularies, kind, "TokenClassification", id2label=names)
    examples, found = asked(tmp_path / "model", "conll-2003", data)
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "model").eval()
    cut_by = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", add_prefix_space=True)
    for example, answer in zip(examples, found.answers, strict=True):
        inputs = cut_by(list(example.texts), is_split_into_words=True, return_tensors="pt")
        firsts = [inputs.word_ids().index(word) for word in range(len(example.texts))]
        expected = model(**inputs).logits.log_softmax(-1)[0, firsts].flip(-1)
        np.testing.assert_allclose(np.asarray(answer), expected.numpy(), rtol=0, atol=1e-5)


def test_long_sentences_and_contexts_go_on_in_more_rows(vocabularies: Mapping[str, Any], tmp_path: Path) -> None:
    ner = save_foreign(
        tmp_path / "ner", vocabularies, "Bert", "TokenClassification",
        id2label=dict(enumerate(TASKS["conll-2003"].labels.names)),
    )  # fmt: skip
    task, long = TASKS["conll-2003"], Example(tuple(" ".join(SENTENCES).split()) * 3, None)
    rows = open_model(ner, task).features([long]).rows
    assert len(rows) > 1
    assert [word for row in rows for _, _, word in row.words] == list(range(len(long.texts)))
    spans = save_foreign(tmp_path / "spans", vocabularies, "Bert", "QuestionAnswering")
    context = " ".join(SENTENCES)
    rows = open_model(spans, TASKS["squad-1.1"]).features([Example(("Who was it?", context), (0, 2))]).rows
    shown = {tuple(span) for row in rows if row.context for span in row.context.offsets.tolist()}
    assert len(rows) > 1
    assert {n for begin, end in shown for n in range(begin, end)} == {
        n for n, c in enumerate(context) if not c.isspace()
    }


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    return evaluate.main()


def test_the_command_measures_each_model_and_the_ensemble(
    ours: Path, vocabularies: Mapping[str, Any], data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    names = {0: "entailment", 1: "not_entailment"}
    other = save_foreign(tmp_path / "bert", vocabularies, "Bert", "SequenceClassification", id2label=names)
    arguments = (ours / "rte", other, "--task", "rte", "--data", data / "rte", "--ensemble", "--batch", "2")
    assert run_command(monkeypatch, *arguments, "--predictions", tmp_path / "out", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["split"], facts["examples"]) == ("validation", 4)
    answers = [asked(directory, "rte", data)[1].answers for directory in (ours / "rte", other)]
    probabilities = [np.exp(np.stack([np.asarray(a) for a in of_model])) for of_model in answers]
    right = np.array([TASKS["rte"].labels.names.index(label) for label in LABELS])
    together = facts["ensemble"]
    for found, values in [*zip(facts["models"], probabilities, strict=True), (together, sum(probabilities) / 2)]:
        assert found["metrics"]["accuracy"] == pytest.approx(float((values.argmax(-1) == right).mean()))
        assert [each["name"] for each in found["classes"]] == ["not_entailment", "entailment"]
        assert 0 <= found["calibration"]["expected_calibration_error"] <= 1
    assert facts["models"][1]["speed"]["tokens_per_second"] > 0
    chosen = (sum(probabilities) / 2).argmax(-1)
    lines = [f"{number}\t{TASKS['rte'].labels.names[label]}" for number, label in enumerate(chosen)]
    assert (tmp_path / "out" / "validation.tsv").read_text().splitlines() == ["index\tprediction", *lines]
    assert run_command(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert f"{other}: transformers, BertForSequenceClassification" in said
    assert "ensemble of 2 models\n  accuracy" in said
    assert "expected calibration error" in said and "threads, float32" in said
    assert "texts that were cut: " in said


@pytest.mark.parametrize("task_name", ["sts-b", "swag", "squad-2.0", "conll-2003"])
def test_every_kind_of_task_is_reported(
    ours: Path, data: Path, task_name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (ours / task_name, ours / task_name, "--task", task_name, "--data", data / task_name, "--ensemble")
    assert run_command(monkeypatch, *arguments, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts["ensemble"]["metrics"]) == list(TASKS[task_name].metrics)
    assert facts["ensemble"]["metrics"] == pytest.approx(facts["models"][0]["metrics"]), "with itself nothing changes"
    assert run_command(monkeypatch, *arguments) == 0
    assert f"{TASKS[task_name].metrics[0]} " in capsys.readouterr().out


def test_a_split_without_labels_gives_the_benchmarks_file(
    ours: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (ours / "rte", "--task", "rte", "--data", data / "rte", "--split", "test")
    assert run_command(monkeypatch, *arguments) == 1
    assert "have no label, so there is nothing to measure; give --predictions" in capsys.readouterr().err
    assert run_command(monkeypatch, *arguments, "--predictions", tmp_path / "out") == 0
    (line,) = (tmp_path / "out" / "RTE.tsv").read_text().splitlines()[1:]
    assert line.startswith("7\t")


def test_what_cannot_be_evaluated_is_told_in_one_line(
    ours: Path, vocabularies: Mapping[str, Any], data: Path, tmp_path: Path, tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refusal(*arguments: object, task: str = "rte") -> str:
        assert run_command(monkeypatch, *arguments, "--task", task, "--data", data / task) == 1
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1, said
        return said.err

    assert "no such directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(tmp_path / "empty")
    assert "--ensemble has no effect on one model" in refusal(ours / "rte", "--ensemble")
    assert "--predictions with 2 models" in refusal(ours / "rte", ours / "rte", "--predictions", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "rte has no split 'dev'; it has 'train', 'validation'" in refusal(ours / "rte", "--split", "dev")
    assert "expected train.tsv" in refusal(ours / "rte", "--split", "train")
    assert "was fine-tuned for rte, whose head is for classification; squad-2.0 needs one for span" in refusal(
        ours / "rte", task="squad-2.0"
    )
    sentiment = tmp_path / "sentiment"
    export(finetuned("sst-2", random_head("sst-2"), tokenizer), sentiment)
    assert "has the labels 'negative', 'positive', the task 'not_entailment', 'entailment'" in refusal(sentiment)
    encoders = export_all(tmp_path / "encoders", tokenizer)
    assert "holds DebertaV2Model; rte needs a model that was fine-tuned with the head of AutoModelForSeq" in refusal(
        encoders["V3"]
    )
    tags = save_foreign(tmp_path / "tags", vocabularies, "Bert", "TokenClassification", num_labels=2)
    assert "holds BertForTokenClassification" in refusal(tags)
    three = save_foreign(tmp_path / "three", vocabularies, "Bert", "SequenceClassification", num_labels=3)
    assert "has the labels 'LABEL_0', 'LABEL_1', 'LABEL_2', the task" in refusal(three)
    assert "sts-b needs one output, a number" in refusal(three, task="sts-b")
    shutil.copytree(ours / "conll-2003", tmp_path / "words", ignore=shutil.ignore_patterns("finetuning.json"))
    assert "its head is code in a file beside the weights" in refusal(tmp_path / "words", task="conll-2003")
    headless = tmp_path / "headless"
    save_foreign(headless, vocabularies, "Bert", "SequenceClassification", num_labels=2)
    transformers.BertModel.from_pretrained(headless).save_pretrained(tmp_path / "bare")
    shutil.copyfile(tmp_path / "bare" / "model.safetensors", headless / "model.safetensors")
    assert "has no weights for classifier.bias, classifier.weight, so its head was not fine-tuned" in refusal(headless)
    (headless / "model.safetensors").write_bytes(b"damaged")
    assert "transformers cannot load its model from local files" in refusal(headless)


def test_a_missing_package_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "deberta_scale.evaluation.foreign", raising=False)
    assert run_command(monkeypatch, tmp_path, "--task", "rte", "--data", data / "rte") == 1
    assert "needs transformers, which is not installed; pip install" in capsys.readouterr().err
