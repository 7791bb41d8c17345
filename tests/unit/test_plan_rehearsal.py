"""The plan against a real step: memory within 15 %, and the rehearsal leaves nothing behind."""

import re
from pathlib import Path

import pytest

from deberta_scale import rehearsal
from deberta_scale.config import ConfigError
from deberta_scale.config_file import load
from deberta_scale.train.distributed import AgreedError
from tests.launching import PRETRAIN, ROOT, start

WORKER = ROOT / "tests" / "unit" / "rehearsal_worker.py"

LARGER = [
    "model.vocab_size=40000",
    "model.hidden_size=512",
    "model.num_attention_heads=8",
    "model.num_hidden_layers=4",
    "model.intermediate_size=2048",
    "batch.sequences=4",
    "batch.micro_sequences=2",
]
"""33 million parameters, so that states outweigh what is alike in all runs."""


def shown(output: str, name: str) -> tuple[float, float]:
    """Measured and planned GB of a line of the report."""
    found = re.search(rf"^  {name} +([\d.]+) GB  ([\d.]+) GB planned", output, re.MULTILINE)
    assert found, output
    return float(found[1]), float(found[2])


@pytest.mark.parametrize(
    ("ranks", "engine"),
    [
        (1, ["engine.zero_stage=3"]),
        (1, ["engine.zero_stage=0", "engine.activation_checkpointing=non_reentrant"]),
        (2, ["engine.zero_stage=2", "engine.precision=bf16"]),
    ],
)
def test_memory_and_checkpoint_are_within_15_percent_of_the_plan(
    config_path: Path, tmp_path: Path, ranks: int, engine: list[str]
) -> None:
    words = [config_path, f"run_dir={tmp_path / 'run'}", *engine, *LARGER, "--rehearse"]
    # freed memory goes back to the system, so that the peak is what was needed at a time
    codes, (output, *_) = start(ranks, PRETRAIN, *words, MALLOC_TOP_PAD_="131072").wait()
    assert codes == [0] * ranks, output
    for name in ("memory of the host", "a checkpoint"):
        measured, planned = shown(output, name)
        assert planned == pytest.approx(measured, rel=0.15), output
    assert "without training" in output and "all digests compared" in output and "Young's interval" in output
    assert not list(tmp_path.glob("run*"))


def test_ranks_rehearse_together_and_the_real_run_is_not_touched(config_path: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    codes, outputs = start(2, PRETRAIN, config_path, f"run_dir={run_dir}", "--rehearse").wait()
    assert codes == [0, 0], outputs
    assert "rehearsed 2 steps" in outputs[0] and "rehearsed" not in outputs[1]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("run")] == ["run"]
    assert [path.name for path in run_dir.rglob("*")] == ["checkpoints"]


def test_a_directory_that_is_no_rehearsals_is_left_alone(config_path: Path, tmp_path: Path) -> None:
    """Not even one that looks like a run: it may be somebody's only copy."""
    kept = tmp_path / "run.rehearsal" / "config.yaml"
    kept.parent.mkdir()
    kept.write_text("run_dir: run.rehearsal")
    codes, outputs = start(2, PRETRAIN, config_path, f"run_dir={tmp_path / 'run'}", "--rehearse").wait()
    assert codes == [1, 1] and "holds something else" in outputs[0] and "Traceback" not in "".join(outputs)
    assert kept.read_text() == "run_dir: run.rehearsal"


def test_what_a_killed_rehearsal_left_is_removed_with_the_marker_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "run.rehearsal"
    rehearsal.claim(left)
    assert [path.name for path in left.iterdir()] == [rehearsal.MARKER]
    (left / "checkpoints" / "step-00000002.partial").mkdir(parents=True)
    (left / "config.yaml").write_text("")

    def stuck(path: Path) -> None:
        raise OSError("busy")

    with monkeypatch.context() as patched:
        patched.setattr(rehearsal.shutil, "rmtree", stuck)
        with pytest.raises(OSError, match="busy"):
            rehearsal.remove(left)
    assert (left / rehearsal.MARKER).exists()
    rehearsal.claim(left)
    assert [path.name for path in left.iterdir()] == [rehearsal.MARKER]
    rehearsal.remove(left)
    assert not left.exists()


def test_too_little_memory_on_one_rank_ends_all_and_nothing_stays(config_path: Path, tmp_path: Path) -> None:
    """Of 1,800 seconds until the others would be ended as hung, none is waited for."""
    words = [WORKER, "1", config_path, f"run_dir={tmp_path / 'run'}", "--rehearse"]
    codes, outputs = start(2, *words).wait(120.0)
    assert codes == [1, 1], outputs
    assert "beside libraries" in outputs[0]
    assert "error: rank 1: too little memory, try a smaller batch.micro_sequences" in outputs[1]
    assert "20 GiB" in outputs[1] and "Traceback" not in outputs[1]
    assert not list(tmp_path.glob("run*"))


def test_a_rehearsal_is_the_run_in_another_place(config_path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk" / "run"
    elsewhere.mkdir(parents=True)
    (tmp_path / "link").symlink_to(elsewhere)
    config = load(str(config_path), [f"run_dir={tmp_path / 'link'}"])
    short = rehearsal.rehearsal_of(config)
    assert short.run_dir == elsewhere.with_name("run.rehearsal")  # on the same disk
    for section in ("model", "data", "batch", "engine", "schedule", "optimizer"):
        assert getattr(short, section) == getattr(config, section)
    assert short.train.steps == config.train.steps


def test_a_rehearsal_that_is_stopped_early_measures_nothing(config_path: Path) -> None:
    run = rehearsal.RehearsedRun.__new__(rehearsal.RehearsedRun)
    run.config, run.step = load(str(config_path), []), 1
    with pytest.raises(AgreedError, match="stopped after step 1, so nothing is measured: signal SIGTERM"):
        run._stop("signal SIGTERM")
    run.step = rehearsal.STEPS
    assert run._stop("2 steps are rehearsed") == 0


def test_steps_that_were_all_skipped_are_not_measured(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("")
    (tmp_path / "events.jsonl").write_text('{"event": "step skipped", "why": "the loss is not finite"}\n')
    with pytest.raises(ConfigError, match=r"every step of the rehearsal was skipped \(the loss is not finite\)"):
        rehearsal._recorded(tmp_path)
