"""SuperGLUE's tasks are read from small files of JSON lines as the benchmark has them."""

import json
from pathlib import Path
from typing import Any

import pytest

from deberta_scale.finetune.readers import Example, ReadError
from deberta_scale.finetune.readers_split import read_split
from deberta_scale.finetune.tasks import TASKS

MULTIRC_QUESTION = {"question": "b", "idx": 8, "answers": [{"text": "c", "idx": 0}]}
MULTIRC_WITHOUT_LABELS = {"idx": 5, "passage": {"text": "a", "questions": [MULTIRC_QUESTION]}}
PASSAGE = "Ann met Bob in Rome.\n@highlight\nBob sang"


def read(task: str, folder: Path, row: dict[str, Any], split: str = "train") -> list[Example]:
    name = {"train": "train", "validation": "val", "test": "test"}[split]
    (folder / f"{name}.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    return read_split(TASKS[task], folder, split).examples


def test_boolq(tmp_path: Path) -> None:
    row = {"question": "is it so", "passage": "It is\u2028so.", "idx": 4, "label": True}
    assert read("boolq", tmp_path, row) == [Example(("It is\u2028so.", "is it so"), "true", "4")]


def test_cb(tmp_path: Path) -> None:
    row = {"premise": "A: Is it?", "hypothesis": "it is", "label": "contradiction", "idx": 2}
    assert read("cb", tmp_path, row) == [Example(("A: Is it?", "it is"), "contradiction", "2")]


def test_rte(tmp_path: Path) -> None:
    row = {"premise": "Ann sang.", "hypothesis": "She sang.", "label": "entailment", "idx": 0}
    assert read("superglue-rte", tmp_path, row) == [Example(("Ann sang.", "She sang."), "entailment", "0")]


@pytest.mark.parametrize(
    ("question", "choices"),
    [
        ("cause", (("It rained.", "The street was wet."), ("It burned.", "The street was wet."))),
        ("effect", (("The street was wet.", "It rained."), ("The street was wet.", "It burned."))),
    ],
)
def test_copa_puts_the_cause_before_its_effect(tmp_path: Path, question: str, choices: Any) -> None:
    row = {"premise": "The street was wet.", "choice1": "It rained.", "choice2": "It burned.", "question": question}
    assert read("copa", tmp_path, row | {"label": 0, "idx": 9}) == [Example((), "0", "9", choices=choices)]


def test_wic_marks_the_word_in_both_sentences(tmp_path: Path) -> None:
    row = {"word": "bank", "sentence1": "The bank lends.", "sentence2": "Two banks of sand", "idx": 1, "label": False}
    row |= {"start1": 4, "end1": 8, "start2": 4, "end2": 9}
    assert read("wic", tmp_path, row) == [Example(("The *bank* lends.", "Two *banks* of sand"), "false", "1")]


def test_wsc_marks_the_phrase_and_the_pronoun(tmp_path: Path) -> None:
    target = {"span1_index": 0, "span1_text": "The old man", "span2_index": 4, "span2_text": "he"}
    row = {"target": target, "text": "The old man said he, too, sang.", "idx": 3, "label": True}
    assert read("wsc", tmp_path, row) == [Example(("*The old man* said #he,# too, sang.",), "true", "3")]


def test_multirc_is_a_pair_for_each_answer(tmp_path: Path) -> None:
    answers = [{"text": "Ann", "idx": 0, "label": 1}, {"text": "Bob", "idx": 1, "label": 0}]
    questions = [
        {"question": "Who?", "idx": 8, "answers": answers},
        {"question": "When?", "idx": 9, "answers": [{"text": "Now", "idx": 2, "label": 1}]},
    ]
    row = {"idx": 5, "version": 1.1, "passage": {"text": "Ann sang.", "questions": questions}}
    assert read("multirc", tmp_path, row) == [
        Example(("Ann sang.", "Who? Ann"), "1", "5-8-0", group="5-8"),
        Example(("Ann sang.", "Who? Bob"), "0", "5-8-1", group="5-8"),
        Example(("Ann sang.", "When? Now"), "1", "5-9-2", group="5-9"),
    ]


def record_row(**query: Any) -> dict[str, Any]:
    entities = [{"start": 8, "end": 10}, {"start": 0, "end": 2}, {"start": 32, "end": 34}]
    qas = [{"query": "It was @placeholder who sang", "idx": 70} | query]
    return {"source": "made up", "passage": {"text": PASSAGE, "entities": entities}, "qas": qas, "idx": 7}


def test_record_proposes_each_entity_once(tmp_path: Path) -> None:
    row = record_row(answers=[{"start": 8, "end": 10, "text": "Bob"}, {"start": 32, "end": 34, "text": "Bob"}])
    passage = "Ann met Bob in Rome.\nBob sang"
    assert read("record", tmp_path, row) == [
        Example((passage, f"It was {name} who sang"), label, f"70-{n}", group="70", answers=("Bob",), candidate=name)
        for n, (name, label) in enumerate([("Bob", "1"), ("Ann", "0")])
    ]


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("boolq", {"question": "is it so", "passage": "It is.", "idx": 4}),
        ("multirc", MULTIRC_WITHOUT_LABELS),
        ("record", record_row()),
    ],
)
def test_test_splits_have_no_labels(tmp_path: Path, task: str, row: dict[str, Any]) -> None:
    assert {example.label for example in read(task, tmp_path, row, "test")} == {None}
    with pytest.raises(ReadError, match=r"there is no column '(label|answers)'"):
        read(task, tmp_path, row, "validation")


def test_words_that_are_not_where_the_file_says(tmp_path: Path) -> None:
    row = {"word": "bank", "sentence1": "The bank.", "sentence2": "A", "idx": 1, "label": False}
    with pytest.raises(ReadError, match=r"train\.jsonl, line 1: start2 0 and end2 9 are no place in sentence2"):
        read("wic", tmp_path, row | {"start1": 4, "end1": 8, "start2": 0, "end2": 9})
    target = {"span1_index": 3, "span1_text": "The man", "span2_index": 1, "span2_text": "he"}
    with pytest.raises(ReadError, match="span1_index 3 is no place among the 4 words"):
        read("wsc", tmp_path, {"target": target, "text": "said he to him", "idx": 3, "label": True})


def test_record_entities_beyond_the_passage(tmp_path: Path) -> None:
    row = record_row(answers=[])
    row["passage"]["entities"].append({"start": 33, "end": 90})
    with pytest.raises(ReadError, match=r"entities\[3\]: the entity ends at 90, the passage has 40 characters"):
        read("record", tmp_path, row)
