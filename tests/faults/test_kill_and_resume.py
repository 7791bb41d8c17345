"""Kill it, start it again with the same command: the run is the one that was never killed."""

import json
import os
import signal
import time
from pathlib import Path

from tests.launching import PRETRAIN, Ranks, read_log, start

OPTIONS = ["train.steps=14", "train.save_every_steps=4", "train.evaluate_every_steps=7", "engine.precision=bf16"]
OPTIONS += ["model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1"]


def pretrain(config_path: Path, run_dir: Path, *options: str, world_size: int = 2) -> Ranks:
    return start(world_size, PRETRAIN, config_path, f"run_dir={run_dir}", *OPTIONS, *options)


def wait_for_step(run_dir: Path, step: int, ranks: Ranks) -> None:
    deadline = time.monotonic() + 120
    log = run_dir / "log.jsonl"
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert time.monotonic() < deadline, "the run never came this far"
        assert all(process.poll() is None for process in ranks.processes), ranks.wait()[1][0][-3000:]
        time.sleep(0.02)


def test_killed_run_continues_the_same_trajectory(config_path: Path, tmp_path: Path) -> None:
    """R13, R16."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    codes, outputs = pretrain(config_path, undisturbed).wait()
    assert codes == [0, 0], outputs[0][-3000:]

    ranks = pretrain(config_path, killed)
    wait_for_step(killed, 6, ranks)
    for process in ranks.processes:
        os.kill(process.pid, signal.SIGKILL)
    codes, _ = ranks.wait()
    assert codes == [-signal.SIGKILL] * 2

    codes, outputs = pretrain(config_path, killed).wait()
    assert codes == [0, 0], outputs[0][-3000:]
    assert "resuming from" in outputs[0] and "digests agree" in outputs[0]

    for kind, keys in (("train", ("step", "loss", "sample_digest", "samples_seen")), ("evaluation", ("step", "loss"))):
        expected = [[record[key] for key in keys] for record in read_log(undisturbed, kind)]
        assert [[record[key] for key in keys] for record in read_log(killed, kind)] == expected
    digests = [record["sample_digest"] for record in read_log(killed)]
    assert len(set(digests)) == 14, "each step reads other samples"


def test_stop_request_saves_and_the_same_command_goes_on(config_path: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    ranks = pretrain(config_path, run_dir)
    wait_for_step(run_dir, 2, ranks)
    os.kill(ranks.processes[1].pid, signal.SIGTERM)  # one rank hears it, all stop
    codes, outputs = ranks.wait()
    assert codes == [75, 75], outputs[0][-3000:]
    assert "stopped at step" in outputs[0] and "SIGTERM" in outputs[0]
    stopped_at = read_log(run_dir)[-1]["step"]
    assert (run_dir / "checkpoints" / f"step-{stopped_at:08d}" / "COMPLETE").exists()
    codes, outputs = pretrain(config_path, run_dir).wait()
    assert codes == [0, 0], outputs[0][-3000:]
    assert [record["step"] for record in read_log(run_dir)] == list(range(1, 15))
    events = [json.loads(line)["event"] for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert (
        events[:2] == ["starting", "start"] and "stopped" in events and "resume" in events and events[-1] == "finished"
    )


def test_damaged_newest_checkpoint_is_passed_over_aloud(config_path: Path, tmp_path: Path) -> None:
    """R19."""
    run_dir = tmp_path / "run"
    codes, _ = pretrain(config_path, run_dir, "train.steps=8", "schedule.warmup_steps=0").wait()
    assert codes == [0, 0]
    expected = read_log(run_dir)
    victim = run_dir / "checkpoints" / "step-00000008" / "engine" / "rank-00001.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    codes, outputs = pretrain(config_path, run_dir, "train.steps=8", "schedule.warmup_steps=0").wait()
    assert codes == [0, 0], outputs[0][-3000:]
    assert f"passed over step-00000008: {victim}" in outputs[0]
    assert "resuming from" in outputs[0] and "step-00000004" in outputs[0]
    assert [r["loss"] for r in read_log(run_dir)] == [r["loss"] for r in expected]


def test_what_does_not_continue_is_refused(config_path: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert pretrain(config_path, run_dir, "train.steps=4").wait()[0] == [0, 0]
    described = {path: path.read_text() for path in [run_dir / "config.yaml", *run_dir.glob("*.json")]}
    for option, expected in (
        ("model.num_hidden_layers=3", "model.num_hidden_layers: the checkpoint has 2, the config 3"),
        ("batch.sequences=32", "batch.sequences: the checkpoint has 16, the config 32"),
        ("resume=never", "holds checkpoints and resume is 'never'"),
    ):
        codes, outputs = pretrain(config_path, run_dir, option).wait()
        assert codes == [1, 1] and expected in outputs[0], outputs[0][-3000:]
        assert "Traceback" not in "".join(outputs)
    assert {path: path.read_text() for path in described} == described, "they tell how the checkpoints were made"


def test_the_command_that_goes_on_from_another_run_goes_on_from_its_own_work(config_path: Path, tmp_path: Path) -> None:
    assert pretrain(config_path, tmp_path / "other", "train.steps=4").wait()[0] == [0, 0]
    run_dir = tmp_path / "run"
    for steps in (6, 8):
        resume = f"resume={tmp_path / 'other' / 'checkpoints' / 'step-00000004'}"
        codes, outputs = pretrain(config_path, run_dir, resume, f"train.steps={steps}").wait()
        assert codes == [0, 0], outputs[0][-3000:]
    assert f"resuming from {run_dir / 'checkpoints' / 'step-00000006'}" in outputs[0]
    assert [record["step"] for record in read_log(run_dir)] == [5, 6, 7, 8]
