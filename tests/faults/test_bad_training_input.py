"""What a person can get wrong when starting a run: one clear message, a non-zero exit, nothing half-written."""

from pathlib import Path

import pytest

from tests.launching import PRETRAIN, read_log, start


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["data.shards=nowhere"], "nowhere"),
        (["model.vocab_size=50"], "model.vocab_size"),
        (["batch.micro_sequences=5"], "batch.micro_sequences that fit: 1, 2, 4, 8"),
        (["train.stepz=5"], "did you mean 'train.steps'?"),
        (["resume=some/where"], "some/where"),
    ],
)
def test_wrong_settings_end_all_ranks_with_one_message(
    config_path: Path, tmp_path: Path, options: list[str], expected: str
) -> None:
    run_dir = tmp_path / "run"
    codes, outputs = start(2, PRETRAIN, config_path, f"run_dir={run_dir}", *options).wait()
    assert codes == [1, 1], outputs
    assert expected in outputs[0]
    assert outputs[0].count("error:") == 1 and "error:" not in outputs[1]
    assert "Traceback" not in "".join(outputs)
    assert not list(run_dir.glob("checkpoints/*"))


def test_a_log_that_cannot_be_opened_ends_all_ranks_with_one_message(config_path: Path, tmp_path: Path) -> None:
    """R18: none waits for another."""
    run_dir = tmp_path / "run"
    (run_dir / "events.jsonl").mkdir(parents=True)
    codes, outputs = start(2, PRETRAIN, config_path, f"run_dir={run_dir}").wait()
    assert codes == [1, 1], outputs
    cause = f"[Errno 21] Is a directory: '{run_dir / 'events.jsonl'}'"
    assert f"error: run_dir {run_dir} cannot be used: {cause}" in outputs[0]
    assert "Traceback" not in "".join(outputs)


def test_a_loss_that_stays_not_finite_stops_all_ranks(config_path: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = [f"run_dir={run_dir}", "train.steps=30", "optimizer.learning_rate=1e30", "optimizer.max_grad_norm=1e30"]
    codes, outputs = start(2, PRETRAIN, config_path, *options).wait()
    assert codes == [1, 1], outputs[0][-3000:]
    last = read_log(run_dir)[-1]["step"] if (run_dir / "log.jsonl").read_text() else 0
    assert f"step {last + 1} skipped: the loss is not finite on rank 0, 1" in outputs[0], outputs[0][-3000:]
    assert f"error: step {last + 9}: 9 of the last 100 steps were skipped, and there is no checkpoint" in outputs[0]
    assert "Traceback" not in "".join(outputs)
    assert not list(run_dir.glob("checkpoints/*"))
