"""`init_from` begins a new run with another model's weights, and is not `resume`."""

import shutil
from pathlib import Path

from tests.launching import PRETRAIN, read_log, start

STEPS = ["train.steps=6", "train.save_every_steps=3", "optimizer.learning_rate=1e-3"]


def run(config_path: Path, run_dir: Path, *options: str) -> str:
    codes, outputs = start(2, PRETRAIN, config_path, f"run_dir={run_dir}", *STEPS, *options).wait()
    assert codes == [0, 0], outputs[0][-3000:]
    return outputs[0]


def test_a_new_run_begins_where_the_other_ended_with_fresh_data_and_optimizer(
    config_path: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run(config_path, first, "train.steps=20", "optimizer.learning_rate=1e-2")
    output = run(config_path, second, f"init_from={first}", "seed=2")
    assert (
        f"weights from {first / 'checkpoints' / 'step-00000020'}; data position, optimizer and schedule are fresh"
        in output
    )
    begun, ended = read_log(second)[0], read_log(first)[-1]
    fresh = read_log(first)[0]["loss"]
    assert begun["step"] == 1 and begun["samples_seen"] == 16
    assert begun["loss"] < (fresh + ended["loss"]) / 2, "it must begin near the end of the first run"
    assert begun["learning_rate"] < read_log(second)[1]["learning_rate"], "the warm-up is its own"


def test_resuming_needs_the_other_model_no_more_and_notices_another_one(config_path: Path, tmp_path: Path) -> None:
    first, second, copy = tmp_path / "first", tmp_path / "second", tmp_path / "copy"
    run(config_path, first)
    shutil.copytree(first, copy)
    run(config_path, second, f"init_from={copy}", "train.steps=3")
    shutil.rmtree(copy)
    output = run(config_path, second, f"init_from={copy}")
    assert "resuming from" in output and "weights from" not in output
    assert [record["step"] for record in read_log(second)] == [1, 2, 3, 4, 5, 6]
    codes, outputs = start(2, PRETRAIN, config_path, f"run_dir={second}", *STEPS, f"init_from={first}").wait()
    assert codes == [1, 1] and "init_from: the checkpoint has" in outputs[0]


def test_a_source_that_is_none_is_refused_by_name(config_path: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    codes, outputs = start(2, PRETRAIN, config_path, f"run_dir={run_dir}", "init_from=nowhere").wait()
    assert codes == [1, 1] and "nowhere" in outputs[0] and "Traceback" not in "".join(outputs)
    assert not list(run_dir.glob("checkpoints/*"))
