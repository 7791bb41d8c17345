"""The table has every task, and its rows fit together."""

import pytest

from deberta_scale.finetune.tasks import TASKS, Task

PAPER = """cola sst-2 mrpc sts-b qqp mnli qnli rte wnli boolq cb copa multirc record superglue-rte wic wsc
squad-1.1 squad-2.0 race swag conll-2003"""


def test_every_task_of_the_paper_is_there() -> None:
    assert set(TASKS) == set(PAPER.split())


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_heads_have_the_labels_they_need(task: Task) -> None:
    """Regression and spans have none to choose from."""
    assert bool(task.labels.names) == (task.head not in ("regression", "span"))
    assert set(task.labels.aliases.values()) <= set(task.labels.names)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_what_is_handed_in_is_a_split_of_the_task(task: Task) -> None:
    assert set(task.submission_files) <= set(task.files)
    assert set(task.submission_labels) <= set(task.labels.names)
    assert "train" in task.files and any(split.startswith("validation") for split in task.files)


def test_files_of_glue_and_superglue_have_the_names_their_servers_ask_for() -> None:
    names = {name for task in TASKS.values() for name in task.submission_files.values()}
    glue = "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm AX QNLI RTE WNLI"
    superglue = "BoolQ CB COPA MultiRC ReCoRD RTE WiC WSC"
    assert names == {f"{name}.tsv" for name in glue.split()} | {f"{name}.jsonl" for name in superglue.split()}
