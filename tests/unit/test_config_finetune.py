"""The config of fine-tuning says what is wrong and what would work, and epochs become steps."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deberta_scale.config import ConfigError
from deberta_scale.config_file import load_as
from deberta_scale.config_finetune import FineTuneConfig, FineTuningRunConfig, resolve
from tests.rows import small_model_config

MINIMAL = """
run_dir: runs/x
init_from: model
task: {name: rte, directory: data}
batch: {sequences: 32, micro_sequences: 8}
optimizer: {learning_rate: 1e-5}
train: {epochs: 3}
"""
OWN = "task={name: own, directory: data, text: body, max_length: 64"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    return path


def read(path: Path, *overrides: str) -> FineTuneConfig:
    return load_as(FineTuneConfig, path, overrides)


def message_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, *overrides)
    return str(caught.value)


def resolved(path: Path, num_rows: int, *overrides: str) -> FineTuningRunConfig:
    return resolve(read(path, *overrides), small_model_config(hidden_dropout_prob=0.1), 320, num_rows)


@pytest.mark.parametrize("task", ["{name: own, directory: data, max_length: 64}", OWN.replace(", max_length: 64", "}")])
def test_an_own_task_needs_a_column_and_a_length(minimal: Path, task: str) -> None:
    message = message_of(minimal, f"task={task.removeprefix('task=')}")
    assert "task: an own task needs text, the name of a column, and max_length" in message
    assert str(minimal) in message


def test_an_own_task_has_columns_and_labels(minimal: Path) -> None:
    task = read(minimal, OWN + ", text_pair: other, label: verdict, labels: [bad, good]}").task
    assert (task.text, task.text_pair, task.label, task.labels) == ("body", "other", "verdict", ("bad", "good"))


def test_columns_of_a_known_task_would_have_no_effect(minimal: Path) -> None:
    message = message_of(minimal, "task.text=body", "task.labels=[bad, good]")
    assert "task: text, labels would have no effect: rte has columns of its own; name: own" in message


def test_one_warmup_is_given(minimal: Path) -> None:
    message = message_of(minimal, "schedule.warmup_steps=50", "schedule.warmup_fraction=0.1")
    assert "warmup_steps and warmup_fraction are both given; leave one of them out" in message
    minimal.write_text(MINIMAL + "schedule: {warmup_steps: 50}\n")
    advised = message.partition("section: '")[2].partition("'")[0]
    assert read(minimal, advised).schedule.warmup_fraction == 0.1, "the words that the message gives"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("task.max_lenght=64", "task.max_lenght: unknown key; did you mean 'task.max_length'?"),
        ("train.epoch=2", "train.epoch: unknown key; did you mean 'train.epochs'?"),
        (
            "schedule.warmup_fracton=0.1",
            "schedule.warmup_fracton: unknown key; did you mean 'schedule.warmup_fraction'?",
        ),
        ("head_drop=0.1", "head_drop: unknown key; did you mean 'head_dropout'?"),
        ("sift.wieght=1", "sift.wieght: unknown key; did you mean 'sift.weight'?"),
        ("train.steps=100", "train.steps: unknown key"),
        ("model.hidden_size=64", "model: unknown key"),
        ("train.epochs=0", "train.epochs: Input should be greater than 0 (given: 0)"),
        ("dropout=1", "dropout: Input should be less than 1 (given: 1)"),
        ("train.stop_after_evaluations=0", "train.stop_after_evaluations: Input should be greater than 0"),
    ],
)
def test_what_is_wrong_is_told_with_its_key(minimal: Path, override: str, expected: str) -> None:
    assert expected in message_of(minimal, override)


def test_other_words_for_the_engine_leave_it_at_stage_1(minimal: Path) -> None:
    assert read(minimal).engine.zero_stage == 1
    config = read(minimal, "engine.precision=fp32")
    assert (config.engine.zero_stage, config.engine.precision) == (1, "fp32")
    assert resolved(minimal, 100, "engine.precision=fp32").engine == config.engine


@pytest.mark.parametrize(
    ("num_rows", "overrides", "steps", "evaluate_every"),
    [
        (320, [], 30, 10),
        (321, [], 31, 10),  # the last step reads into another epoch
        (320, ["train.evaluations_per_epoch=2"], 30, 5),
        (320, ["train.evaluations_per_epoch=4"], 30, 2),
        (320, ["train.epochs=0.5"], 5, 5),
        (320, ["train.epochs=0.01"], 1, 1),
        (5, [], 1, 1),
        (40, ["train.evaluations_per_epoch=8"], 4, 1),
        (2490, ["train.epochs=6"], 467, 78),  # RTE
        (392_702, ["batch.sequences=64", "train.epochs=2", "train.evaluations_per_epoch=2"], 12_272, 3068),  # MNLI
    ],
)
def test_epochs_become_steps(
    minimal: Path, num_rows: int, overrides: list[str], steps: int, evaluate_every: int
) -> None:
    train = resolved(minimal, num_rows, *overrides).train
    assert (train.steps, train.evaluate_every_steps) == (steps, evaluate_every)
    assert train.save_every_steps == train.evaluate_every_steps, "what is judged can be exported"


@pytest.mark.parametrize(
    ("overrides", "warmup_steps"),
    [
        ([], 0),
        (["schedule.warmup_steps=7"], 7),
        (["schedule.warmup_fraction=0.1"], 3),
        (["schedule.warmup_fraction=0.06", "train.epochs=10"], 6),
        (["schedule.warmup_fraction=1"], 30),
    ],
)
def test_warmup_of_the_run(minimal: Path, overrides: list[str], warmup_steps: int) -> None:
    assert resolved(minimal, 320, *overrides).schedule.warmup_steps == warmup_steps


def test_a_warmup_longer_than_the_run_is_told_in_the_words_of_the_config(minimal: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(minimal, 320, "schedule.warmup_steps=50")
    assert str(caught.value) == (
        "schedule: warm-up and decay take 50 steps, but 3 epochs of 320 rows, 32 a step, are 30; give fewer, or"
        " warmup_fraction instead of warmup_steps"
    )
    decaying = ("schedule.name=wsd", "schedule.decay_steps=20")
    assert resolved(minimal, 320, "schedule.warmup_steps=10", *decaying).schedule.decay_steps == 20
    with pytest.raises(ConfigError, match="warm-up and decay take 31 steps"):
        resolved(minimal, 320, "schedule.warmup_steps=11", *decaying)


def test_the_run_has_what_was_written_and_the_model_it_begins_with(minimal: Path) -> None:
    run = resolved(minimal, 320, "train.stop_after_evaluations=2", "optimizer.layer_decay=0.9", "head_dropout=0.3")
    assert (run.stop_after_evaluations, run.optimizer.layer_decay, run.head_dropout) == (2, 0.9, 0.3)
    assert (run.task.max_length, run.model.hidden_dropout_prob) == (320, 0.1)
    assert resolved(minimal, 320).stop_after_evaluations is None


def test_dropout_is_that_of_the_whole_encoder(minimal: Path) -> None:
    model = resolved(minimal, 320, "dropout=0.2").model
    assert (model.hidden_dropout_prob, model.attention_probs_dropout_prob) == (0.2, 0.2)


@pytest.mark.parametrize(
    "overrides", [[], ["engine.precision=fp32", "sift={weight: 1}", "schedule.warmup_fraction=0.1"]]
)
def test_the_file_of_a_run_reads_back_as_the_same(minimal: Path, overrides: list[str]) -> None:
    run = resolved(minimal, 320, *overrides)
    written: dict[str, Any] = yaml.safe_load(run.to_yaml())
    assert FineTuningRunConfig(**written) == run


@pytest.mark.parametrize(("patience", "evaluations"), [(3, 3), (1, 1)])
def test_an_early_stop_that_never_comes_is_refused(minimal: Path, patience: int, evaluations: int) -> None:
    words = [f"train.epochs={evaluations}", f"train.stop_after_evaluations={patience}"]
    with pytest.raises(ConfigError, match=f"{patience} has no effect on {evaluations} evaluation"):
        resolved(minimal, 320, *words)
