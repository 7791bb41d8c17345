"""Labelled data that cannot be used is refused with its place, what is wrong, and what would do."""

import gzip
from pathlib import Path

import pytest

from deberta_scale.finetune.readers import Labels, ReadError
from deberta_scale.finetune.readers_split import read_split
from deberta_scale.finetune.tasks import TASKS, own_task, task_named

GOOD = "sentence\tlabel\na\t1\nb\t0\n"


def message(folder: Path, task: str = "sst-2", split: str = "train") -> str:
    with pytest.raises(ReadError) as caught:
        read_split(TASKS[task], folder, split)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sentence\tlabel\na\t1\nb\tgood\n", "train.tsv, line 3: the label 'good' is none of '0', '1'"),
        ("sentence\tlabel\na\t1\nb\t\n", "train.tsv, line 3: the label '' is none of '0', '1'"),
        ("text\tlabel\na\t1\n", "train.tsv, line 2: there is no column 'sentence'; there are 'text', 'label'"),
        ("sentence\tscore\na\t1\n", "train.tsv, line 2: there is no column 'label'; there are 'sentence', 'score'"),
        ("sentence\tlabel\n", "the split 'train' has no examples; copy or download its files again"),
        ("", "the split 'train' has no examples"),
        (b"sentence\tlabel\n\xff\t1\n", "train.tsv: not UTF-8 text"),
    ],
)
def test_files_with_something_wrong(tmp_path: Path, content: str | bytes, expected: str) -> None:
    (tmp_path / "train.tsv").write_bytes(content.encode() if isinstance(content, str) else content)
    assert expected in message(tmp_path)


def test_a_number_that_is_none(tmp_path: Path) -> None:
    for value in ("high", "nan", "inf"):
        (tmp_path / "train.tsv").write_text(f"sentence1\tsentence2\tscore\na\tb\t{value}\n")
        assert f"line 2: 'score' is '{value}'; it must be a number" in message(tmp_path, "sts-b")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "train.jsonl, line 2: not JSON"),
        ("[1]", "train.jsonl, line 2: expected a JSON object, found list"),
        ('{"premise": 4, "hypothesis": "b", "label": "neutral"}', "line 2: 'premise' is 4; it must be text"),
        ('{"premise": "a", "hypothesis": "b", "label": 2}', "line 2: the label '2' is none of 'contradiction', "),
    ],
)
def test_lines_of_json_with_something_wrong(tmp_path: Path, line: str, expected: str) -> None:
    good = '{"premise": "a", "hypothesis": "b", "label": "neutral"}'
    (tmp_path / "train.jsonl").write_text(f"{good}\n{line}\n")
    assert expected in message(tmp_path, "cb")


def test_squad_of_another_form(tmp_path: Path) -> None:
    path = tmp_path / "train-v1.1.json"
    path.write_text('{"data": [{"paragraphs": "none"}]}')
    assert "the document, data[0]: 'paragraphs' is 'none'; it must be a list" in message(tmp_path, "squad-1.1")
    path.write_text('{"data": [{"paragraphs": [{"context": "c", "qas": [3]}]}]}')
    assert "paragraphs[0]: 'qas[0]' is 3; it must be an object" in message(tmp_path, "squad-1.1")


def test_files_that_are_missing_damaged_or_there_twice(tmp_path: Path) -> None:
    assert message(tmp_path / "nowhere").endswith("expected train.tsv (or with .gz); no such folder")
    assert message(tmp_path).endswith("expected train.tsv (or with .gz); it is empty")
    compressed = gzip.compress(GOOD.encode())
    (tmp_path / "train.tsv.gz").write_bytes(compressed[:-9])
    assert "train.tsv.gz: damaged" in message(tmp_path)
    (tmp_path / "train.tsv.gz").write_bytes(GOOD.encode())
    assert "train.tsv.gz: damaged" in message(tmp_path)
    (tmp_path / "train.tsv").write_text(GOOD)
    assert "train.tsv is there plain and gzipped" in message(tmp_path)
    for name in ("train.tsv", "in_domain_train.tsv"):
        (tmp_path / name).write_text("a\t1\t\tb\n")
    (tmp_path / "train.tsv.gz").unlink()
    assert "train.tsv and in_domain_train.tsv are both there" in message(tmp_path, "cola")


def test_a_split_that_the_task_has_not(tmp_path: Path) -> None:
    assert "mnli has no split 'validation'; it has 'train', 'validation_matched'" in message(
        tmp_path, "mnli", "validation"
    )


def test_a_task_that_is_none() -> None:
    with pytest.raises(ReadError, match=r"no task 'mnl'; did you mean 'mnli'\? The tasks are cola, sst-2,"):
        task_named("mnl")


@pytest.mark.parametrize("labels", [("a",), ("a", "b", "a")])
def test_labels_that_are_no_choice(labels: tuple[str, ...]) -> None:
    with pytest.raises(ReadError, match="give two or more, each once"):
        own_task("text", labels=labels, max_length=64)


LABELS = Labels(("contradiction", "neutral", "entailment"))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (("entailment", "not_entailment"), "has 2 labels, 'entailment', 'not_entailment'; the task has 3, "),
        (("entailment", "neutral", "contradiction"), "the same in another order"),
        (("contradiction", "neutral", "other"), "other labels"),
        (("one",), "has 1 labels"),
    ],
)
def test_another_set_of_labels_in_a_checkpoint(found: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ReadError, match=r"^models/mnli has") as caught:
        LABELS.check_same(found, "models/mnli")
    assert expected in str(caught.value)


@pytest.mark.parametrize("found", [("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_the_same_labels_in_a_checkpoint(found: tuple[str, ...]) -> None:
    LABELS.check_same(found, "models/mnli")
    TASKS["wnli"].labels.check_same(("not_entailment", "entailment"), "models/wnli")
    Labels().check_same(("LABEL_0",), "models/sts-b")
