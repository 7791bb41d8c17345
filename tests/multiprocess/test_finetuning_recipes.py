"""Every shipped recipe of fine-tuning loads, trains and exports, and ranks find together what one process finds."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from deberta_scale.config_file import load_as
from deberta_scale.config_finetune import FineTuneConfig
from deberta_scale.convert.finetuned_source import load_head, open_finetuned
from deberta_scale.convert.huggingface import export
from deberta_scale.finetune.sweep import variations
from deberta_scale.finetune.tasks import TASKS
from tests.benchmark_files import write_benchmark
from tests.exporting import CONFIGS, random_model, source_of
from tests.launching import ROOT, read_log, start

WORKER = Path(__file__).with_name("finetuning_worker.py")
FOLDER = ROOT / "configs" / "finetune"
RECIPES = sorted(FOLDER.glob("*.yaml"))
SMALLER = [
    "engine.precision=fp32",
    "batch.sequences=4",
    "batch.micro_sequences=2",
    "schedule={warmup_steps: 1}",
    "train.evaluations_per_epoch=1",
    "train.log_every_steps=1",
]
ONE_STEP = ["train.epochs=0.01", "optimizer.learning_rate=1e-3"]
SAME_EVERYWHERE = ["train.epochs=2", "optimizer.learning_rate=1e-2", "dropout=0"]
OF_EACH_HEAD = {
    "mnli": ["head_dropout=0", "optimizer.layer_decay=0.7"],
    "sts-b": ["head_dropout=0"],
    "copa": ["head_dropout=0"],
    "conll-2003": ["task.max_length=64"],  # its recipe is without head_dropout; rows hold two sentences, not all
    "squad-2.0": [],  # the head has no dropout
}
"""A task of each head, and the words without which it would have random numbers, or too few rows."""
NAME = {"ids": lambda path: path.stem}


def recipe(path: Path, *overrides: str) -> FineTuneConfig:
    return load_as(FineTuneConfig, path, overrides)


@pytest.mark.parametrize("path", RECIPES, **NAME)
def test_it_is_named_as_its_task_everywhere(path: Path) -> None:
    config = recipe(path)
    assert config.task.name == path.stem
    assert config.run_dir == Path("runs") / path.stem
    assert config.task.directory == Path("data") / path.stem
    assert path.read_text().startswith(f"# command: deepspeed launch/finetune.py configs/finetune/{path.name} ")


def test_every_task_has_a_recipe() -> None:
    assert {path.stem for path in RECIPES} == set(TASKS)


@pytest.mark.parametrize("path", RECIPES, **NAME)
def test_the_words_in_its_comment_can_be_given_and_change_something(path: Path) -> None:
    text, shipped = path.read_text(), recipe(path)
    sizes = re.findall(r"^#   (\S+): (.*)$", text, re.MULTILINE)
    sweep = re.findall(r"--sweep (\S+)", text)
    assert sizes or sweep, "values for other sizes are published, or a sweep is advised"
    for size, words in sizes:
        for word in words.split():
            assert recipe(path, word) != shipped, f"{size}: {word} is what the recipe has"
        recipe(path, *words.split())
    for variation in variations(sweep):
        recipe(path, *variation.overrides)


def option_words(directory: Path, parent: Path, task_name: str, *overrides: str) -> list[str]:
    """Of a run in a folder of `parent`, with the shared files of `directory`."""
    places = [f"run_dir={parent / task_name}", f"init_from={directory / 'pretrained'}"]
    places.append(f"task.directory={directory / 'data' / task_name}")
    return ["--", str(FOLDER / f"{task_name}.yaml"), *places, *SMALLER, *overrides]


def same_everywhere(directory: Path, parent: Path, task_name: str, zero_stage: int) -> list[str]:
    stage = f"engine.zero_stage={zero_stage}"
    return option_words(directory, parent, task_name, stage, *SAME_EVERYWHERE, *OF_EACH_HEAD[task_name])


def fine_tune(world_size: int, words: list[str]) -> None:
    codes, outputs = start(world_size, WORKER, *words).wait()
    assert codes == [0] * world_size, outputs[0][-3000:]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, prepared_shards: Path) -> Path:
    """A pretrained model, the data of all tasks and what one process made of them: `recipes`, and `alone` of a task of
    each head."""
    directory = tmp_path_factory.mktemp("finetuning")
    export(source_of(random_model(CONFIGS["V3"]), prepared_shards / "tokenizer"), directory / "pretrained")
    words = []
    for task_name in TASKS:
        write_benchmark(task_name, directory / "data" / task_name)
        words += option_words(directory, directory / "recipes", task_name, *ONE_STEP)
    for task_name in OF_EACH_HEAD:
        words += same_everywhere(directory, directory / "alone", task_name, zero_stage=1)
    fine_tune(1, words)
    return directory


def result_of(run_dir: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    return result


@pytest.mark.parametrize("task_name", TASKS)
def test_recipe_trains_measures_and_exports(directory: Path, task_name: str) -> None:
    run_dir, task = directory / "recipes" / task_name, TASKS[task_name]
    result = result_of(run_dir)
    splits = [split for split in task.files if split.startswith("validation")]
    assert set(result["values"]) == {f"{split}/{name}" for split in splits for name in (*task.metrics, "loss")}
    assert result["metric"] == f"{splits[0]}/{task.metrics[0]}"
    assert (result["step"], [record["step"] for record in read_log(run_dir)]) == (1, [1])
    exported = open_finetuned(run_dir / "huggingface")
    assert (exported.description.task, exported.description.head) == (task_name, task.head)
    assert len(exported.description.labels) == len(task.labels.names)
    assert all(tensor.isfinite().all() for tensor in load_head(exported).state_dict().values())
    assert not (run_dir / "checkpoints").exists()


def test_two_ranks_at_stage_3_find_what_one_process_finds(directory: Path) -> None:
    """Of every head; the rows to validate are no multiple of the ranks."""
    assert {TASKS[task_name].head for task_name in OF_EACH_HEAD} == {task.head for task in TASKS.values()}
    words = [same_everywhere(directory, directory / "together", task_name, zero_stage=3) for task_name in OF_EACH_HEAD]
    fine_tune(2, [word for of_run in words for word in of_run])
    for task_name in OF_EACH_HEAD:
        alone, together = directory / "alone" / task_name, directory / "together" / task_name
        losses, expected = ([record["loss"] for record in read_log(run_dir)] for run_dir in (together, alone))
        assert losses == pytest.approx(expected, abs=1e-4), task_name
        assert len(losses) > 1 and losses[-1] != pytest.approx(losses[0], abs=1e-2), "the model changes"
        found, wanted = result_of(together), result_of(alone)
        assert found["step"] == wanted["step"], task_name
        assert found["values"] == pytest.approx(wanted["values"], abs=1e-4), task_name
