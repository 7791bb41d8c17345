"""Folders that `datasets` saved are read as the hub has them, to the same examples as the benchmark's own files."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Features, Value

from deberta_scale.finetune.readers import NO_ANSWER, Example, ReadError
from deberta_scale.finetune.readers_split import Split, read_split
from deberta_scale.finetune.tasks import TASKS

TEXT, NUMBER = Value("string"), Value("int32")


def read(task: str, folder: Path, rows: list[dict[str, Any]], features: dict[str, Any], split: str = "train") -> Split:
    saved = datasets.Dataset.from_list(rows, features=Features(features))
    datasets.DatasetDict({split: saved}).save_to_disk(str(folder))
    return read_split(TASKS[task], folder, split)


@pytest.mark.parametrize(
    ("task", "names", "number", "columns", "label"),
    [
        ("cola", ["unacceptable", "acceptable"], 1, ("sentence",), "1"),
        ("sst-2", ["negative", "positive"], 0, ("sentence",), "0"),
        ("mrpc", ["not_equivalent", "equivalent"], 1, ("sentence1", "sentence2"), "1"),
        ("qqp", ["not_duplicate", "duplicate"], 1, ("question1", "question2"), "1"),
        ("mnli", ["entailment", "neutral", "contradiction"], 0, ("premise", "hypothesis"), "entailment"),
        ("qnli", ["entailment", "not_entailment"], 0, ("sentence", "question"), "entailment"),
        ("rte", ["entailment", "not_entailment"], 0, ("sentence1", "sentence2"), "entailment"),
        ("wnli", ["not_entailment", "entailment"], 1, ("sentence1", "sentence2"), "1"),
        ("boolq", ["False", "True"], 1, ("passage", "question"), "true"),
        ("cb", ["entailment", "contradiction", "neutral"], 1, ("premise", "hypothesis"), "contradiction"),
        ("superglue-rte", ["entailment", "not_entailment"], 1, ("premise", "hypothesis"), "not_entailment"),
    ],
)
def test_labels_go_by_their_names_and_not_by_their_numbers(
    tmp_path: Path, task: str, names: list[str], number: int, columns: tuple[str, ...], label: str
) -> None:
    row = {column: f"text of {column}" for column in columns} | {"label": number, "idx": 6}
    features = {column: TEXT for column in columns} | {"label": ClassLabel(names=names), "idx": NUMBER}
    texts = tuple(f"text of {column}" for column in columns)
    assert read(task, tmp_path, [row], features).examples[0].texts == texts
    assert read_split(TASKS[task], tmp_path, "train").examples[0].label == label


def test_a_test_splits_label_of_minus_one_is_none(tmp_path: Path) -> None:
    features = {"sentence": TEXT, "label": ClassLabel(names=["negative", "positive"]), "idx": NUMBER}
    row = {"sentence": "a", "label": -1, "idx": 3}
    assert read("sst-2", tmp_path / "test", [row], features, "test").examples == [Example(("a",), None, "0")]
    with pytest.raises(ReadError, match=r"train/train, row 0: the label '-1' is none of '0', '1'"):
        read("sst-2", tmp_path / "train", [row], features)


def test_multirc(tmp_path: Path) -> None:
    where = {"paragraph": NUMBER, "question": NUMBER, "answer": NUMBER}
    features = {"paragraph": TEXT, "question": TEXT, "answer": TEXT, "idx": where}
    features |= {"label": ClassLabel(names=["False", "True"])}
    row = {"paragraph": "p", "question": "q", "answer": "a", "idx": {"paragraph": 1, "question": 2, "answer": 3}}
    expected = Example(("p", "q a"), "1", "1-2-3", group="1-2")
    assert read("multirc", tmp_path, [row | {"label": 1}], features).examples == [expected]


def test_record(tmp_path: Path) -> None:
    features = {"passage": TEXT, "query": TEXT, "entities": datasets.List(TEXT), "answers": datasets.List(TEXT)}
    features |= {"idx": {"passage": NUMBER, "query": NUMBER}}
    row = {"passage": "Ann met Bob", "query": "@placeholder sang", "entities": ["Ann", "Bob"], "answers": ["Bob"]}
    found = read("record", tmp_path, [row | {"idx": {"passage": 0, "query": 4}}], features).examples
    assert [(e.texts[1], e.label, e.group, e.candidate) for e in found] == [
        ("Ann sang", "0", "4", "Ann"),
        ("Bob sang", "1", "4", "Bob"),
    ]


def test_copa_wic_and_wsc(tmp_path: Path) -> None:
    copa = {"premise": "p", "choice1": "c", "choice2": "d", "question": "effect", "idx": 1, "label": 1}
    features = {name: TEXT for name in ("premise", "choice1", "choice2", "question")}
    features |= {"idx": NUMBER, "label": ClassLabel(names=["choice1", "choice2"])}
    (example,) = read("copa", tmp_path / "copa", [copa], features).examples
    assert (example.label, example.choices) == ("1", (("p", "c"), ("p", "d")))

    true_or_false = {"idx": NUMBER, "label": ClassLabel(names=["False", "True"])}
    wsc = {"text": "Ann sang as she ran", "span1_index": 0, "span1_text": "Ann", "span2_index": 3, "span2_text": "she"}
    features = {"text": TEXT, "span1_index": NUMBER, "span1_text": TEXT, "span2_index": NUMBER, "span2_text": TEXT}
    found = read("wsc", tmp_path / "wsc", [wsc | {"idx": 2, "label": 1}], features | true_or_false)
    assert found.examples == [Example(("*Ann* sang as #she# ran",), "true", "2")]

    wic = {"sentence1": "a bank", "sentence2": "banks", "start1": 2, "end1": 6, "start2": 0, "end2": 5}
    features = {name: NUMBER if name[0] in "se" and name[1] in "tn" else TEXT for name in wic}
    features |= {"sentence1": TEXT, "sentence2": TEXT}
    found = read("wic", tmp_path / "wic", [wic | {"idx": 2, "label": 0}], features | true_or_false)
    assert found.examples == [Example(("a *bank*", "*banks*"), "false", "2")]


def test_squad(tmp_path: Path) -> None:
    features = {"id": TEXT, "context": TEXT, "question": TEXT}
    features |= {"answers": {"text": datasets.List(TEXT), "answer_start": datasets.List(NUMBER)}}
    row = {"id": "a", "context": "Ann sang", "question": "Who?", "answers": {"text": ["Ann"], "answer_start": [0]}}
    empty = {"id": "b", "context": "Ann sang", "question": "When?", "answers": {"text": [], "answer_start": []}}
    found = read("squad-2.0", tmp_path, [row, empty], features).examples
    assert [(e.id, e.label, e.answers) for e in found] == [("a", (0, 3), ("Ann",)), ("b", NO_ANSWER, ())]


def test_race_and_swag(tmp_path: Path) -> None:
    race = {"example_id": "high1.txt", "article": "p", "question": "q", "options": list("wxyz"), "answer": "D"}
    features = {"example_id": TEXT, "article": TEXT, "question": TEXT, "options": datasets.List(TEXT), "answer": TEXT}
    example, other = read("race", tmp_path / "race", [race, race | {"question": "r"}], features).examples
    assert (example.label, example.choices[3]) == ("D", ("p", "q z"))
    assert example.id != other.id

    swag = {"sent1": "a", "sent2": "b", "label": 2} | {f"ending{n}": str(n) for n in range(4)}
    features = {name: TEXT for name in swag} | {"label": ClassLabel(names=list("0123"))}
    (example,) = read("swag", tmp_path / "swag", [swag], features).examples
    assert (example.label, example.choices[3]) == ("2", ("a", "b 3"))


def test_conll_counts_the_marks_between_documents(tmp_path: Path) -> None:
    tags = ClassLabel(names=["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"])
    features = {"tokens": datasets.List(TEXT), "ner_tags": datasets.List(tags)}
    rows = [{"tokens": ["-DOCSTART-"], "ner_tags": [0]}, {"tokens": ["Ann", "Lee"], "ner_tags": [1, 2]}]
    split = read("conll-2003", tmp_path, rows, features)
    assert split.examples == [Example(("Ann", "Lee"), ("B-PER", "I-PER"), "0")]
    assert "1 left out" in split.notes[0] and "row 0" in split.notes[0]


def test_a_split_that_was_not_saved(tmp_path: Path) -> None:
    read("sst-2", tmp_path, [{"sentence": "a", "label": "0"}], {"sentence": TEXT, "label": TEXT})
    with pytest.raises(ReadError, match="there is no split 'validation'; there are 'train'"):
        read_split(TASKS["sst-2"], tmp_path, "validation")
    (tmp_path / "train" / "state.json").write_text("{")
    with pytest.raises(ReadError, match=r"train: not a folder that Dataset\.save_to_disk wrote, or damaged"):
        read_split(TASKS["sst-2"], tmp_path, "train")
