"""SQuAD, RACE, SWAG and CoNLL are read from small files in their own formats."""

import json
from pathlib import Path
from typing import Any

import pytest

from deberta_scale.finetune.readers import NO_ANSWER, Example, ReadError
from deberta_scale.finetune.readers_split import Split, read_split
from deberta_scale.finetune.tasks import TASKS

CONTEXT = "Ann sang in Rome."


def read_squad(folder: Path, version: str, *questions: dict[str, Any]) -> Split:
    paragraph = {"context": CONTEXT, "qas": list(questions)}
    document = {"version": version, "data": [{"title": "Ann", "paragraphs": [paragraph]}]}
    (folder / f"dev-v{version}.json").write_text(json.dumps(document))
    return read_split(TASKS[f"squad-{version}"], folder, "validation")


def test_squad_trains_on_the_first_answer_and_measures_against_all(tmp_path: Path) -> None:
    answers = [{"text": "Rome", "answer_start": 12}, {"text": "in Rome", "answer_start": 9}]
    split = read_squad(tmp_path, "1.1", {"id": "q1", "question": "Where?", "answers": answers})
    assert split.examples == [Example(("Where?", CONTEXT), (12, 16), "q1", answers=("Rome", "in Rome"))]


def test_squad_2_has_questions_without_an_answer(tmp_path: Path) -> None:
    plausible = [{"text": "Rome", "answer_start": 12}]
    question = {"id": "q2", "question": "When?", "answers": [], "is_impossible": True, "plausible_answers": plausible}
    assert read_squad(tmp_path, "2.0", question).examples == [Example(("When?", CONTEXT), NO_ANSWER, "q2")]


def test_squad_without_an_answer_that_should_be_there(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"data\[0\], paragraphs\[0\], qas\[0\]: no answer, and it is not said"):
        read_squad(tmp_path, "1.1", {"id": "q1", "question": "Where?", "answers": []})


def test_answers_that_do_not_stand_in_the_context_are_left_out_and_told(tmp_path: Path) -> None:
    right = {"id": "q1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}
    wrong = {"id": "q2", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 1}]}
    split = read_squad(tmp_path, "1.1", right, wrong)
    assert [example.id for example in split.examples] == ["q1"]
    assert "1 left out" in split.notes[0] and "qas[1]" in split.notes[0]


def test_race(tmp_path: Path) -> None:
    for level, answer in (("high", "C"), ("middle", "A")):
        directory = tmp_path / "test" / level
        directory.mkdir(parents=True)
        passage = {"article": CONTEXT, "questions": ["Ann _ ."], "options": [["ran", "sat", "sang", "ate"]]}
        (directory / "1.txt").write_text(json.dumps(passage | {"answers": [answer], "id": f"{level}1.txt"}))
    found = read_split(TASKS["race"], tmp_path, "test").examples
    assert [(example.id, example.label) for example in found] == [("high1.txt-0", "C"), ("middle1.txt-0", "A")]
    assert found[0].choices[2] == (CONTEXT, "Ann _ . sang")
    assert len(found[0].choices) == 4


def test_swag(tmp_path: Path) -> None:
    header = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label"
    row = '11,v,1,"Ann sat, then. She","Ann sat, then.",She,gold,"said ""no"".",ate.,ran.,sat.,3'
    (tmp_path / "train.csv").write_text(f"{header}\n{row}\n")
    endings = ('She said "no".', "She ate.", "She ran.", "She sat.")
    choices = tuple(("Ann sat, then.", ending) for ending in endings)
    assert read_split(TASKS["swag"], tmp_path, "train").examples == [Example((), "3", "11", choices=choices)]


def test_conll_in_the_spelling_of_its_first_release(tmp_path: Path) -> None:
    """I- begins an entity, and B- one that touches another of its kind."""
    rows = [
        "-DOCSTART- -X- O O",
        "",
        "Ann NNP I-NP I-PER",
        "Lee NNP I-NP I-PER",
        "Bob NNP I-NP B-PER",
        "sang VBD I-VP O",
        "",
        "Rome NNP I-NP I-LOC",
        "Fiat NNP I-NP I-ORG",
        "",
        "-DOCSTART- -X- O O",
        "",
        "Now RB I-ADVP O",
        "",
    ]
    (tmp_path / "eng.train").write_text("\n".join(rows))
    assert read_split(TASKS["conll-2003"], tmp_path, "train").examples == [
        Example(("Ann", "Lee", "Bob", "sang"), ("B-PER", "I-PER", "B-PER", "O"), "0", group="1"),
        Example(("Rome", "Fiat"), ("B-LOC", "B-ORG"), "1", group="1"),
        Example(("Now",), ("O",), "2", group="2"),
    ]


def test_conll_with_every_beginning_marked_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("Ann B-PER\nLee I-PER\nBob B-PER\nsang O\n")
    (found,) = read_split(TASKS["conll-2003"], tmp_path, "train").examples
    assert found.label == ("B-PER", "I-PER", "B-PER", "O")


def test_conll_with_a_tag_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("sang O\n\nAnn B-PER\nLee I-PERSON\n")
    with pytest.raises(ReadError, match=r"lines 3 to 4: the label 'B-PERSON' is none of 'O', 'B-MISC'"):
        read_split(TASKS["conll-2003"], tmp_path, "train")
