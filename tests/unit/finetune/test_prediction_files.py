"""Files of predictions are what the servers of GLUE, SuperGLUE and SQuAD take in."""

import json
from pathlib import Path
from typing import Any

import pytest

from deberta_scale.finetune.predictions import Prediction, write_predictions
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.tasks import TASKS


def written(
    folder: Path, task: str, values: dict[str, str | float], split: str = "test", name: str | None = None
) -> list[str]:
    """The lines of the file, by id and value of each prediction."""
    examples = [Example(("a",), id=number) for number in values]
    predictions = [Prediction(value) for value in values.values()]
    path = write_predictions(TASKS[task], split, examples, predictions, folder)
    assert path.parent == folder and path.name == (name or path.name)
    assert [inner.name for inner in folder.iterdir()] == [path.name]
    return path.read_text(encoding="utf-8").splitlines()


def test_glue(tmp_path: Path) -> None:
    lines = written(tmp_path, "rte", {"0": "entailment", "1": "not_entailment"}, name="RTE.tsv")
    assert lines == ["index\tprediction", "0\tentailment", "1\tnot_entailment"]


def test_mnli_is_handed_in_in_two_files(tmp_path: Path) -> None:
    for split, name in (("test_matched", "MNLI-m.tsv"), ("test_mismatched", "MNLI-mm.tsv")):
        (tmp_path / split).mkdir()
        assert written(tmp_path / split, "mnli", {"9": "neutral"}, split, name)[1:] == ["9\tneutral"]


def test_sts_b_is_from_0_to_5(tmp_path: Path) -> None:
    lines = written(tmp_path, "sts-b", {"0": 2.34567, "1": -0.2, "2": 5.5}, name="STS-B.tsv")
    assert lines[1:] == ["0\t2.346", "1\t0.000", "2\t5.000"]


@pytest.mark.parametrize(
    ("task", "value", "label"),
    [
        ("boolq", "true", "true"),
        ("cb", "neutral", "neutral"),
        ("copa", "1", 1),
        ("superglue-rte", "entailment", "entailment"),
        ("wic", "false", "false"),
        ("wsc", "false", "False"),
    ],
)
def test_superglue(tmp_path: Path, task: str, value: str, label: Any) -> None:
    assert list(map(json.loads, written(tmp_path, task, {"12": value}))) == [{"idx": 12, "label": label}]


def test_multirc_is_nested(tmp_path: Path) -> None:
    lines = written(tmp_path, "multirc", {"0-3-7": "1", "0-3-8": "0", "0-4-9": "0", "1-5-0": "1"})
    assert list(map(json.loads, lines)) == [
        {
            "idx": 0,
            "passage": {
                "questions": [
                    {"idx": 3, "answers": [{"idx": 7, "label": 1}, {"idx": 8, "label": 0}]},
                    {"idx": 4, "answers": [{"idx": 9, "label": 0}]},
                ]
            },
        },
        {"idx": 1, "passage": {"questions": [{"idx": 5, "answers": [{"idx": 0, "label": 1}]}]}},
    ]


def test_record_names_the_likeliest_entity_of_each_query(tmp_path: Path) -> None:
    proposed = [("7", "Ann", -2.0), ("7", "Bob", -1.0), ("8", "Émile", 3.0)]
    examples = [Example(("a",), id=str(n), group=g, candidate=c) for n, (g, c, _) in enumerate(proposed)]
    path = write_predictions(
        TASKS["record"], "test", examples, [Prediction("0", score) for *_, score in proposed], tmp_path
    )
    assert path.name == "ReCoRD.jsonl"
    assert list(map(json.loads, path.read_text().splitlines())) == [
        {"idx": 7, "label": "Bob"},
        {"idx": 8, "label": "Émile"},
    ]


def test_squad_is_one_object(tmp_path: Path) -> None:
    lines = written(tmp_path, "squad-2.0", {"q1": "the ﬁne\nking", "q2": ""}, "validation", "validation.json")
    assert json.loads("\n".join(lines)) == {"q1": "the ﬁne\nking", "q2": ""}


def test_tasks_that_no_server_takes_are_lines_of_json(tmp_path: Path) -> None:
    lines = written(tmp_path, "race", {"high1.txt-0": "C"}, "test", "test.jsonl")
    assert list(map(json.loads, lines)) == [{"id": "high1.txt-0", "prediction": "C"}]


def test_two_predictions_of_one_id_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    examples = [Example(("a",), id="4"), Example(("b",), id="4")]
    with pytest.raises(ValueError, match="rte test: two examples have the id '4'"):
        write_predictions(TASKS["rte"], "test", examples, [Prediction("entailment")] * 2, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_there_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "RTE.tsv").write_text("old\n" * 100)
    assert written(tmp_path, "rte", {"0": "entailment"}) == ["index\tprediction", "0\tentailment"]
