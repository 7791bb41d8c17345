"""A fine-tuning run: learns, exports what it judged best, goes on after a kill, and says what does not fit."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deberta_scale.config_file import load_as
from deberta_scale.config_finetune import FineTuneConfig
from deberta_scale.convert.finetuned_source import is_finetuned
from deberta_scale.convert.formats import open_source
from deberta_scale.convert.huggingface import export
from deberta_scale.doctor_run import diagnose
from deberta_scale.finetune.objective import FineTuning
from deberta_scale.finetuning import conclude
from tests.exporting import random_model, source_of
from tests.launching import ROOT, Ranks, read_log, start
from tests.published import publish_checkpoint
from tests.rows import small_model_config

FINETUNE = ROOT / "launch" / "finetune.py"
GOOD, BAD = ("merry", "happy", "kind", "fond"), ("angry", "sad", "cruel", "cold")
CONFIG = """
init_from: {pretrained}
task: {{name: own, directory: {data}, text: sentence, label: mood, labels: [bad, good], max_length: 32}}
batch: {{sequences: 16, micro_sequences: 8}}
optimizer: {{learning_rate: 3e-3}}
schedule: {{warmup_fraction: 0.1}}
engine: {{zero_stage: 1, precision: fp32}}
train: {{epochs: 4, log_every_steps: 1}}
run_dir: {run_dir}
"""


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Label and text, told by one word."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        label = random.choice(["good", "bad"])
        word = random.choice(GOOD if label == "good" else BAD)
        found.append((str(label), f"She was very {word} to {random.choice(['him', 'her', 'them all'])}."))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, prepared_shards: Path) -> Path:
    """A folder with a model nobody trained, and texts with labels."""
    place = tmp_path_factory.mktemp("finetuning")
    model = random_model(small_model_config(vocab_size=640, initializer_range=0.05))
    export(source_of(model, prepared_shards / "tokenizer"), place / "pretrained")
    (place / "data").mkdir()
    for name, count, seed in (("train", 96, 1), ("dev", 40, 2)):
        lines = ["mood\tsentence", *(f"{label}\t{text}" for label, text in sentences(count, seed))]
        (place / "data" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return place


@pytest.fixture
def config(place: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(pretrained=place / "pretrained", data=place / "data", run_dir=tmp_path / "run"))
    return path


def finetune(config: Path, *words: str | Path, ranks: int = 1) -> str:
    codes, outputs = start(ranks, FINETUNE, config, *words).wait()
    assert codes == [0] * ranks, outputs[0][-3000:]
    return outputs[0]


def result_in(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    return found


def kill_when(ranks: Ranks, happened: Callable[[], bool]) -> None:
    """Wait for something that a running process does, and kill it."""
    while not happened():
        assert all(process.poll() is None for process in ranks.processes), ranks.wait()[1]
    ranks.kill()


def test_it_learns_and_stock_transformers_answers_as_it_was_judged(
    config: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    output = finetune(config)
    run_dir = tmp_path / "run"
    found = result_in(run_dir)
    accuracy = found["values"]["validation/accuracy"]
    assert accuracy > 0.9 and f"validation/accuracy {accuracy:.4f}" in output
    judged = [record["validation/accuracy"] for record in read_log(run_dir, "evaluation")]
    assert accuracy == max(judged) and len(judged) == 4
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run_dir / "huggingface")
    tokenizer = transformers.AutoTokenizer.from_pretrained(run_dir / "huggingface")
    assert model.config.id2label == {0: "bad", 1: "good"}
    examples = [line.split("\t") for line in (place / "data" / "dev.tsv").read_text().splitlines()[1:]]
    answers = model(**tokenizer([text for _, text in examples], padding=True, return_tensors="pt")).logits.argmax(-1)
    right = [model.config.id2label[int(answer)] == label for answer, (label, _) in zip(answers, examples, strict=True)]
    assert sum(right) / len(right) == pytest.approx(accuracy)

    assert not (run_dir / "checkpoints").exists()
    assert not [path for path in (run_dir / "tokenizer").iterdir() if path.name.endswith(".safetensors")]
    assert diagnose(run_dir).next == f"Its best model is {run_dir / 'huggingface'}; see launch/evaluate.py."
    assert open_source(run_dir).path == run_dir / "huggingface"  # so that another task may begin with it
    before = (run_dir / "result.json").stat().st_mtime_ns
    assert "finished already" in finetune(config)
    assert (run_dir / "result.json").stat().st_mtime_ns == before
    codes, outputs = start(1, FINETUNE, config, "optimizer.learning_rate=1e-3").wait()
    assert codes == [1] and "holds a finished run with other settings" in outputs[0]
    assert "optimizer.learning_rate: it has 0.003, the config 0.001" in outputs[0] and "Traceback" not in outputs[0]


def test_killed_and_started_again_it_finds_the_same(config: Path, tmp_path: Path) -> None:
    finetune(config, f"run_dir={tmp_path / 'undisturbed'}")
    killed = tmp_path / "run"
    ranks = start(1, FINETUNE, config)
    kill_when(ranks, lambda: any((killed / "checkpoints").glob("step-*/COMPLETE")))
    assert "resuming from" in finetune(config)
    for run_dir in (killed, tmp_path / "undisturbed"):
        assert [record["step"] for record in read_log(run_dir)] == list(range(1, 25))
    losses = [[record["loss"] for record in read_log(path)] for path in (killed, tmp_path / "undisturbed")]
    assert losses[0] == losses[1]
    assert result_in(killed)["values"] == result_in(tmp_path / "undisturbed")["values"]


def test_a_sweep_keeps_what_is_finished_and_goes_on_with_what_was_interrupted(config: Path, tmp_path: Path) -> None:
    words = ("--sweep", "seed=1,2,3")
    ranks = start(1, FINETUNE, config, *words)
    first, second = tmp_path / "run" / "seed-1", tmp_path / "run" / "seed-2"
    kill_when(ranks, lambda: any((second / "checkpoints").glob("step-*/COMPLETE")))
    kept = (first / "result.json").read_bytes(), (first / "result.json").stat().st_mtime_ns
    assert not (second / "result.json").exists()
    output = finetune(config, *words)
    assert kept == ((first / "result.json").read_bytes(), (first / "result.json").stat().st_mtime_ns)
    steps = [record["step"] for record in read_log(second)]
    assert steps == list(range(1, 25))
    events = [json.loads(line)["event"] for line in (second / "events.jsonl").read_text().splitlines()]
    assert "resume" in events
    values = [result_in(tmp_path / "run" / f"seed-{seed}")["values"]["validation/accuracy"] for seed in (1, 2, 3)]
    mean = sum(values) / 3
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    assert f"| all | {mean:.4f} ± {spread:.4f} | 3 of 3 |" in output
    assert f"| all | {mean:.4f} ± {spread:.4f} | 3 of 3 |" in (tmp_path / "run" / "sweep.md").read_text()


def test_parts_of_a_sweep_are_made_by_different_processes(config: Path, tmp_path: Path) -> None:
    words = ("--sweep", "seed=1,2,3", "train.epochs=0.2")
    finetune(config, *words, "--part", "1/2")
    assert [path.name for path in sorted((tmp_path / "run").glob("seed-*"))] == ["seed-2"]
    output = finetune(config, *words, "--part", "0/2")
    assert "3 of 3" in output


def test_it_ends_early_when_nothing_becomes_better(config: Path, tmp_path: Path) -> None:
    finetune(config, "optimizer.learning_rate=1e-9", "train.epochs=9", "train.stop_after_evaluations=2")
    found = result_in(tmp_path / "run")
    assert (found["step"], found["last_step"]) == (6, 18)
    (event,) = [
        json.loads(line)
        for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()
        if '"finished"' in line
    ]
    assert event["early"] == "2 evaluations in a row were no better than that of step 6"


def test_stopped_on_request_it_asks_to_be_started_again(config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "STOP").touch()
    codes, outputs = start(1, FINETUNE, config, "--sweep", "seed=1,2").wait()
    assert codes == [75], outputs[0][-3000:]
    assert not (tmp_path / "run" / "STOP").exists() and not (tmp_path / "run" / "seed-2").exists()
    finetune(config, "--sweep", "seed=1,2")
    assert (tmp_path / "run" / "seed-2" / "result.json").exists()


def test_sift_trains_on_two_ranks_as_on_one(config: Path, tmp_path: Path) -> None:
    stage, adversary = (
        ["train.epochs=1", "engine.zero_stage=3"],
        "sift={weight: 1.0, initial_noise: 0.5, step_size: 0.5}",
    )
    losses = []
    for ranks in (1, 2):
        run_dir = tmp_path / f"ranks-{ranks}"
        finetune(config, f"run_dir={run_dir}", adversary, *stage, ranks=ranks)
        losses.append([record["loss"] for record in read_log(run_dir)])
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and len(losses[0]) == 6
    finetune(config, f"run_dir={tmp_path / 'plain'}", *stage)
    plain = read_log(tmp_path / "plain")[0]["loss"]
    assert losses[0][0] > 1.001 * plain, "the penalty is in the loss"


def test_weights_are_left_out_where_pretraining_is_measured(config: Path, place: Path, tmp_path: Path) -> None:
    few = ["train.epochs=0.2", "optimizer.learning_rate=1e-5"]
    output = finetune(config, "from_scratch=true", *few)
    assert "weights are fresh (from_scratch)" in output
    finetune(config, f"run_dir={tmp_path / 'pretrained'}", *few)
    name = "deberta.embeddings.word_embeddings.weight"
    given, fresh, kept = (
        load_file(directory / "model.safetensors")[name]
        for directory in (
            place / "pretrained",
            tmp_path / "run" / "huggingface",
            tmp_path / "pretrained" / "huggingface",
        )
    )
    assert (kept - given).abs().max() < 1e-3 < 0.05 < (fresh - given).abs().max()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["schedule.warmup_steps=5"], "warmup_steps and warmup_fraction are both given"),
        (["--part", "2/2"], "--part '2/2'"),
        (["--part", "0/2"], "--part 0/2 has no effect"),
        (["--sweep", "seed=1,a"], "seed"),
        (["train.epochs=0"], "train.epochs"),
        (["task.labels=[bad, better]"], "'good'"),
        (["batch.micro_sequences=5"], "batch.micro_sequences that fit"),
    ],
)
def test_what_does_not_fit_is_told_in_one_message(
    config: Path, tmp_path: Path, words: list[str], expected: str
) -> None:
    codes, outputs = start(1, FINETUNE, config, *words).wait()
    assert codes == [1], outputs[0][-2000:]
    assert outputs[0].count("error:") == 1 and expected in outputs[0], outputs[0]
    assert "Traceback" not in outputs[0] and not list(tmp_path.glob("run/checkpoints/*"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["task={name: colla, directory: data}"], "did you mean 'cola'?"),
        (["task={name: cola, directory: nowhere}"], "nowhere: expected"),
        (["task.text=text"], "no column 'text'"),
        (["init_from=nowhere"], "nowhere does not exist"),
        (["task.labels=null"], "'mood' is 'good'; it must be a number"),
        (["sift={weight: 1, compat: official}", "task={name: sts-b, directory: nowhere}"], "nowhere"),
    ],
)
def test_what_the_task_and_the_model_do_not_allow_is_told(config: Path, words: list[str], expected: str) -> None:
    with pytest.raises(ValueError) as error:
        objective_of(load_as(FineTuneConfig, config, words))
    assert expected in str(error.value)


def test_an_empty_validation_split_is_told(config: Path, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    (tmp_path / "data" / "dev.tsv").write_text("mood\tsentence\n")
    with pytest.raises(ValueError, match="the split 'validation' has no examples"):
        objective_of(load_as(FineTuneConfig, config, [f"task.directory={tmp_path / 'data'}"]))


def test_longer_texts_than_rows_are_cut_and_told(config: Path) -> None:
    objective = objective_of(load_as(FineTuneConfig, config, ["task.max_length=8"]))
    told = "\n".join(objective.start_lines(0, 1))
    assert "train: 96 of 96 texts are longer than 8 tokens" in told and "their ends were left out" in told


def objective_of(config: FineTuneConfig) -> FineTuning:
    return FineTuning(config, open_source(config.init_from))


def test_when_the_best_was_not_saved_the_next_best_is_exported_and_told(
    config: Path, prepared_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run goes on from a save that failed once."""
    settings = load_as(FineTuneConfig, config)
    judged = [(step, {"validation/accuracy": accuracy}) for step, accuracy in ((6, 0.9), (12, 0.8), (18, 0.7))]
    objective = FineTuning(settings, open_source(settings.init_from), judged)
    torch.manual_seed(3)
    weights = objective.build_model().state_dict()
    run_dir = tmp_path / "run"
    for step in (12, 18):
        publish_checkpoint(run_dir, weights, step)
    shutil.copytree(prepared_shards / "tokenizer", run_dir / "tokenizer")
    result = conclude(settings, objective, last_step=18)
    assert (result.step, result.values) == (12, judged[1][1])
    assert "step-00000006 was better than step-00000012, which is exported" in capsys.readouterr().out
    assert is_finetuned(run_dir / "huggingface") and not (run_dir / "checkpoints").exists()


def test_other_labels_do_not_continue_a_run(config: Path, tmp_path: Path) -> None:
    ranks = start(1, FINETUNE, config)
    kill_when(ranks, lambda: any((tmp_path / "run" / "checkpoints").glob("step-*/COMPLETE")))
    codes, outputs = start(1, FINETUNE, config, "task.labels=[good, bad]").wait()
    assert codes == [1] and "does not continue with this config" in outputs[0], outputs[0]
    assert "labels" in outputs[0]
