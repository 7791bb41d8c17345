"""GLUE's tasks, and tasks of one's own, are read from small files in their own formats."""

import gzip
import json
from pathlib import Path

import pytest

from deberta_scale.finetune.readers import Example, ReadError
from deberta_scale.finetune.readers_split import read_split
from deberta_scale.finetune.tasks import TASKS, own_task

MNLI_HEADER = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
    "\tsentence1\tsentence2"
)
FILES = {
    "sst-2": ("train.tsv", "sentence\tlabel\na dull film \t0\n"),
    "mrpc": ("train.tsv", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t70\t71\tHe went .\tHe left .\n"),
    "sts-b": (
        "train.tsv",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tnews\tf\t2012\t1\tnone\tnone\tA plane.\tAn aircraft.\t4.750\n",
    ),
    "qqp": (
        "train.tsv",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n40\t1\t2\tHow old?\tWhat age?\t1\n",
    ),
    "mnli": (
        "train.tsv",
        f"{MNLI_HEADER}\tlabel1\tgold_label\n"
        "3\t1\t1n\tfiction\t( a )\t( b )\ta\tb\tIt rains.\tIt is wet.\tneutral\tneutral\n",
    ),
    "qnli": ("train.tsv", "index\tquestion\tsentence\tlabel\n5\tWho?\tAnn did.\tentailment\n"),
    "rte": ("train.tsv", "index\tsentence1\tsentence2\tlabel\n6\tAnn sang.\tShe sang.\tnot_entailment\n"),
    "wnli": ("train.tsv", "index\tsentence1\tsentence2\tlabel\n7\tIt fell.\tThe cup fell.\t1\n"),
}
EXAMPLES = {
    "sst-2": Example(("a dull film ",), "0", "0"),
    "mrpc": Example(("He went .", "He left ."), "1", "0"),
    "sts-b": Example(("A plane.", "An aircraft."), 4.75, "0"),
    "qqp": Example(("How old?", "What age?"), "1", "40"),
    "mnli": Example(("It rains.", "It is wet."), "neutral", "3"),
    "qnli": Example(("Ann did.", "Who?"), "entailment", "5"),
    "rte": Example(("Ann sang.", "She sang."), "not_entailment", "6"),
    "wnli": Example(("It fell.", "The cup fell."), "1", "7"),
}


def read(task: str, folder: Path, split: str = "train") -> list[Example]:
    return read_split(TASKS[task], folder, split).examples


@pytest.mark.parametrize("task", FILES)
def test_training_files(task: str, tmp_path: Path) -> None:
    name, content = FILES[task]
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read(task, tmp_path) == [EXAMPLES[task]]


def test_cola_has_a_header_in_its_test_split_alone(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("gj04\t1\t\tHe ran.\nbc01\t0\t*\tHe run goes.\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n12\tHe sat.\n")
    assert [(e.texts, e.label) for e in read("cola", tmp_path)] == [(("He ran.",), "1"), (("He run goes.",), "0")]
    assert read("cola", tmp_path, "test") == [Example(("He sat.",), None, "12")]


def test_colas_two_development_files_are_one_split(tmp_path: Path) -> None:
    (tmp_path / "in_domain_dev.tsv").write_text("gj04\t1\t\tHe ran.\n")
    (tmp_path / "out_of_domain_dev.tsv").write_text("clc95\t0\t*\tHe run goes.\n")
    assert [(e.texts[0], e.id) for e in read("cola", tmp_path, "validation")] == [
        ("He ran.", "0"),
        ("He run goes.", "1"),
    ]


def test_mnli_is_evaluated_on_two_domains(tmp_path: Path) -> None:
    row = (
        "3\t1\t1n\tfiction\t( a )\t( b )\ta\tb\t{}\tIt is wet.\tneutral\tneutral\tneutral\tneutral\tneutral\tneutral\n"
    )
    labels = "\t".join(f"label{n}" for n in range(1, 6))
    for name, text in (("matched", "It rains."), ("mismatched", "It snows.")):
        (tmp_path / f"dev_{name}.tsv").write_text(f"{MNLI_HEADER}\t{labels}\tgold_label\n{row.format(text)}")
        assert [e.texts[0] for e in read("mnli", tmp_path, f"validation_{name}")] == [text]


def test_quotes_are_text_and_only_line_feeds_end_rows(tmp_path: Path) -> None:
    text = 'He said "yes\u2028and" \r no \x85 "'
    (tmp_path / "dev.tsv").write_text(f"sentence\tlabel\n{text}\t1\nplain\t0\n", encoding="utf-8")
    assert [e.texts[0] for e in read("sst-2", tmp_path, "validation")] == [text, "plain"]


def test_rows_that_end_as_on_windows_are_the_same(tmp_path: Path) -> None:
    name, content = FILES["rte"]
    (tmp_path / name).write_bytes(content.replace("\n", "\r\n").encode())
    assert read("rte", tmp_path) == [EXAMPLES["rte"]]


def test_gzipped_files_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "train.tsv.gz").write_bytes(gzip.compress(FILES["rte"][1].encode()))
    assert read("rte", tmp_path) == [EXAMPLES["rte"]]


def test_broken_rows_of_qqp_are_left_out_and_told(tmp_path: Path) -> None:
    name, content = FILES["qqp"]
    (tmp_path / name).write_text(f"{content}41\t3\t4\tHalf a row\n42\t5\n")
    split = read_split(TASKS["qqp"], tmp_path, "train")
    assert split.examples == [EXAMPLES["qqp"]]
    assert len(split.notes) == 1
    assert split.notes[0].startswith(f"2 left out, the first at {tmp_path / name}, line 3: ")


def test_broken_rows_of_other_tasks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n6\tAnn sang.\tShe\tsang.\tentailment\n")
    with pytest.raises(
        ReadError, match=r"train\.tsv, line 2: number of fields .*4: index, sentence1, sentence2, label"
    ):
        read("rte", tmp_path)


@pytest.mark.parametrize("kind", [".tsv", ".csv", ".jsonl"])
def test_a_task_of_ones_own(tmp_path: Path, kind: str) -> None:
    rows = [{"id": "x1", "title": "One, two", "body": 'a "b"', "verdict": "bad"}]
    if kind == ".jsonl":
        content = "".join(json.dumps(row) + "\n" for row in rows)
    elif kind == ".tsv":
        content = 'id\ttitle\tbody\tverdict\nx1\tOne, two\ta "b"\tbad\n'
    else:
        content = 'id,title,body,verdict\nx1,"One, two","a ""b""",bad\n'
    (tmp_path / f"dev{kind}").write_text(content)
    task = own_task("title", "body", label="verdict", labels=("good", "bad"), max_length=64)
    assert read_split(task, tmp_path, "validation").examples == [Example(("One, two", 'a "b"'), "bad", "x1")]


def test_numbers_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 2}\n{"text": "b", "label": -0.5}\n')
    task = own_task("text", labels=(), max_length=64)
    assert task.head == "regression"
    assert [e.label for e in read_split(task, tmp_path, "train").examples] == [2.0, -0.5]
