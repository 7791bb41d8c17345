"""Every task of the paper in one table, and tasks of one's own: which files, how they become inputs, which head, labels
and metrics, how predictions are handed in.

Inputs and the order of labels are those of the official code where it has the task, so that its fine-tuned checkpoints
can be read. WiC and WSC say their words by signs in the text, ReCoRD proposes one entity at a time, and COPA scores its
two choices together: the official code has heads of its own for these, or lacks the task.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deberta_scale.config_sift import Head
from deberta_scale.finetune.readers import Form, Labels, LeftOut, ReadError, Record, columns
from deberta_scale.finetune.readers_files import (
    ENDINGS,
    cola_records,
    paragraph_records,
    passage_records,
    records_by_ending,
    sentence_records,
    tsv_records_with_gaps,
)
from deberta_scale.finetune.readers_questions import conll, race, saved_race, saved_squad, squad, swag
from deberta_scale.finetune.readers_superglue import (
    copa,
    multirc,
    record_entities,
    saved_multirc,
    saved_record_entities,
    saved_wsc,
    wic,
    wsc,
)

SubmissionKind = Literal["glue", "superglue", "multirc", "record", "squad", "lines"]
Files = tuple[tuple[str, ...], ...]
"""Ways in which a split is known to come: for each the names of its files (or RACE's directories), read in this order.
The first way whose files are all there is taken; each may end in `.gz` as well."""


@dataclass(frozen=True)
class Task:
    """One row of the table."""

    name: str
    form: Form
    """Of the benchmark's own records."""
    files: Mapping[str, Files]
    """By split, named as in `datasets`."""
    max_length: int
    """Tokens of a row, special ones counted: the default."""
    labels: Labels = field(default_factory=Labels)
    head: Head = "classification"
    metrics: tuple[str, ...] = ("accuracy",)
    """Names in `metrics.METRICS`. Early stopping looks at the first; the higher, the better, for all."""
    records: Callable[[Path], Iterator[Record | LeftOut]] = records_by_ending
    saved_form: Form | None = None
    """Of rows that `datasets` saved, where their columns have other names."""
    submission: SubmissionKind = "lines"
    submission_files: Mapping[str, str] = field(default_factory=dict)
    """The name that the benchmark wants, by split."""
    submission_labels: Mapping[str, str | int] = field(default_factory=dict)
    """How it wants a label spelled, where not as here."""

    def has_all_labels(self, split: str) -> bool:
        """False for splits whose labels a benchmark may keep back."""
        return not split.startswith(("test", "diagnostic"))


def _split_files(ending: str, validation: str) -> dict[str, Files]:
    named = {"train": "train", "validation": validation, "test": "test"}
    return {split: ((name + ending,),) for split, name in named.items()}


_BINARY, _NUMBERS = ("0", "1"), {"0": 0, "1": 1}
_TRUE_OR_FALSE = Labels(("false", "true"), {"False": "false", "True": "true"})
_ENTAILMENT = Labels(("not_entailment", "entailment"))
_THREE_WAY = Labels(("contradiction", "neutral", "entailment"))
_ENTITIES = ("O", *(f"{sign}-{kind}" for kind in ("MISC", "PER", "ORG", "LOC") for sign in "BI"))
_GLUE_FILES = _split_files(".tsv", "dev")


def _binary(negative: str, positive: str) -> Labels:
    """0 and 1, which `datasets` spells so."""
    return Labels(_BINARY, {negative: "0", positive: "1"})


def _glue(name: str, submitted_as: str, form: Form, max_length: int, **more: Any) -> Task:
    files = {"test": f"{submitted_as}.tsv"}
    return Task(name, form, max_length=max_length, submission_files=files, **_GLUE_DEFAULTS | more)


def _superglue(name: str, submitted_as: str, form: Form, max_length: int, **more: Any) -> Task:
    files = {"test": f"{submitted_as}.jsonl"}
    return Task(name, form, max_length=max_length, submission_files=files, **_SUPERGLUE_DEFAULTS | more)


_GLUE_DEFAULTS: dict[str, Any] = {"files": _GLUE_FILES, "submission": "glue"}
_SUPERGLUE_DEFAULTS: dict[str, Any] = {"files": _split_files(".jsonl", "val"), "submission": "superglue"}

_TABLE = (
    _glue(
        "cola",
        "CoLA",
        columns("sentence", identifier="index"),
        max_length=64,
        files=_GLUE_FILES
        | {
            "train": (("train.tsv",), ("in_domain_train.tsv",)),
            "validation": (("dev.tsv",), ("in_domain_dev.tsv", "out_of_domain_dev.tsv")),
        },
        records=cola_records,
        labels=_binary("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
    ),
    _glue(
        "sst-2",
        "SST-2",
        columns("sentence", identifier="index"),
        max_length=128,
        labels=_binary("negative", "positive"),
    ),
    _glue(
        "mrpc",
        "MRPC",
        columns("#1 String", "#2 String", label="Quality", identifier="index"),
        max_length=128,
        labels=_binary("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        saved_form=columns("sentence1", "sentence2"),
    ),
    _glue(
        "sts-b",
        "STS-B",
        columns("sentence1", "sentence2", label="score", identifier="index"),
        max_length=128,
        head="regression",
        metrics=("pearson", "spearman"),
        saved_form=columns("sentence1", "sentence2"),
    ),
    _glue(
        "qqp",
        "QQP",
        columns("question1", "question2", label="is_duplicate", identifier="id"),
        max_length=320,
        records=tsv_records_with_gaps,  # the released file has rows that are broken in two
        labels=_binary("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        saved_form=columns("question1", "question2"),
    ),
    Task(
        "mnli",
        columns("sentence1", "sentence2", label="gold_label", identifier="index"),
        max_length=256,
        files={
            "train": (("train.tsv",),),
            "validation_matched": (("dev_matched.tsv",),),
            "validation_mismatched": (("dev_mismatched.tsv",),),
            "test_matched": (("test_matched.tsv",),),
            "test_mismatched": (("test_mismatched.tsv",),),
            "diagnostic": (("diagnostic.tsv",),),
        },
        labels=_THREE_WAY,
        saved_form=columns("premise", "hypothesis"),
        submission="glue",
        submission_files={"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv", "diagnostic": "AX.tsv"},
    ),
    _glue("qnli", "QNLI", columns("sentence", "question", identifier="index"), max_length=512, labels=_ENTAILMENT),
    _glue("rte", "RTE", columns("sentence1", "sentence2", identifier="index"), max_length=320, labels=_ENTAILMENT),
    _glue(
        "wnli",
        "WNLI",
        columns("sentence1", "sentence2", identifier="index"),
        max_length=128,
        labels=_binary("not_entailment", "entailment"),
    ),
    _superglue("boolq", "BoolQ", columns("passage", "question"), max_length=512, labels=_TRUE_OR_FALSE),
    _superglue(
        "cb",
        "CB",
        columns("premise", "hypothesis"),
        max_length=256,
        labels=_THREE_WAY,
        metrics=("macro_f1", "accuracy"),
    ),
    _superglue(
        "copa",
        "COPA",
        copa,
        max_length=136,
        head="choice",
        labels=_binary("choice1", "choice2"),
        submission_labels=_NUMBERS,
    ),
    _superglue(
        "multirc",
        "MultiRC",
        multirc,
        max_length=512,
        labels=_binary("False", "True"),
        metrics=("f1", "question_exact_match"),
        saved_form=saved_multirc,
        submission="multirc",
        submission_labels=_NUMBERS,
    ),
    _superglue(
        "record",
        "ReCoRD",
        record_entities,
        max_length=512,
        labels=Labels(_BINARY),
        metrics=("entity_answer_f1", "entity_answer_exact_match"),
        saved_form=saved_record_entities,
        submission="record",
    ),
    _superglue("superglue-rte", "RTE", columns("premise", "hypothesis"), max_length=320, labels=_ENTAILMENT),
    _superglue("wic", "WiC", wic, max_length=128, labels=_TRUE_OR_FALSE),
    _superglue(
        "wsc",
        "WSC",
        wsc,
        max_length=128,
        labels=_TRUE_OR_FALSE,
        saved_form=saved_wsc,
        submission_labels={"false": "False", "true": "True"},
    ),
    *(
        Task(
            f"squad-{version}",
            squad,
            max_length=384,
            head="span",
            files={"train": ((f"train-v{version}.json",),), "validation": ((f"dev-v{version}.json",),)},
            records=paragraph_records,
            metrics=metrics,
            saved_form=saved_squad,
            submission="squad",
        )
        for version, metrics in (
            ("1.1", ("answer_f1", "answer_exact_match")),
            ("2.0", ("best_answer_f1", "best_answer_exact_match")),
        )
    ),
    Task(
        "race",
        race,
        max_length=512,
        head="choice",
        files=_split_files("", "dev"),
        records=passage_records,
        labels=Labels(("A", "B", "C", "D")),
        saved_form=saved_race,
    ),
    Task(
        "swag",
        swag,
        max_length=128,
        head="choice",
        files=_split_files(".csv", "val"),
        labels=Labels(("0", "1", "2", "3")),
    ),
    Task(
        "conll-2003",
        conll,
        max_length=512,
        head="tokens",
        files={
            "train": (("eng.train",), ("train.txt",)),
            "validation": (("eng.testa",), ("valid.txt",)),
            "test": (("eng.testb",), ("test.txt",)),
        },
        records=sentence_records,
        labels=Labels(_ENTITIES),
        metrics=("entity_f1", "entity_precision", "entity_recall"),
    ),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _TABLE}


def task_named(name: str) -> Task:
    """A row of the table. Raises ReadError naming the nearest one, and all."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ReadError(f"there is no task {name!r}; {hint}The tasks are {', '.join(TASKS)}")
    return TASKS[name]


def own_task(
    text: str, text_pair: str | None = None, *, label: str = "label", labels: tuple[str, ...], max_length: int
) -> Task:
    """Texts of one's own in train, validation (or dev) and test files, .tsv, .csv or .jsonl, with these columns.

    `labels` in the order of the model's outputs; without any, labels are numbers (regression). Raises ReadError for
    labels that are no choice.
    """
    if len(labels) == 1 or len(set(labels)) < len(labels):
        raise ReadError(f"labels: {', '.join(labels)}; give two or more, each once, or none where labels are numbers")
    splits = {"train": ("train",), "validation": ("validation", "dev"), "test": ("test",)}
    return Task(
        "own",
        columns(text, text_pair, label, identifier="id"),
        max_length=max_length,
        head="classification" if labels else "regression",
        files={
            split: tuple((name + ending,) for name in names for ending in ENDINGS) for split, names in splits.items()
        },
        labels=Labels(labels),
        metrics=("accuracy", "macro_f1") if labels else ("pearson", "spearman", "negative_squared_error"),
    )
