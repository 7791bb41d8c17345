"""The doctor names why a run stopped, from its directory alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deberta_scale.doctor_run import Diagnosis, diagnose
from deberta_scale.train.metrics import append_event
from tests.launching import ROOT
from tests.unit.test_doctor import doctor_command


class RunDirectory:
    """One as training writes it, whose records are `silent` seconds old when it is looked at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "checkpoints").mkdir(parents=True)
        (path / "config.yaml").write_text("run_dir: here\n")

    def events(self, *events: tuple[str, dict[str, Any]]) -> None:
        lines = [json.dumps({"time": "2026-01-01T00:00:00+0000", "event": name, **rest}) for name, rest in events]
        (self.path / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))

    def trained(self, *steps: int, seconds_per_step: float = 1.0) -> None:
        records = [{"kind": "train", "step": step, "seconds_per_step": seconds_per_step} for step in steps]
        (self.path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def checkpoint(self, step: int, num_bytes: int = 10, claimed_bytes: int | None = None) -> Path:
        path = self.path / "checkpoints" / f"step-{step:08d}"
        path.mkdir()
        (path / "weights").write_bytes(b"x" * num_bytes)
        claimed = num_bytes if claimed_bytes is None else claimed_bytes
        (path / "manifest.json").write_text(json.dumps({"files": {"weights": {"bytes": claimed}}}))
        (path / "COMPLETE").write_text("")
        return path

    def seen_after(self, silence_seconds: float) -> Diagnosis:
        newest = max(path.stat().st_mtime for path in self.path.iterdir())
        return diagnose(self.path, newest + silence_seconds)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


START = ("start", {"step": 0, "steps": 100})
HOURS = 7200.0


def test_a_finished_run_is_well(run: RunDirectory) -> None:
    run.events(START, ("saved", {"step": 100}), ("finished", {"step": 100}))
    run.trained(50, 100)
    run.checkpoint(100)
    found = run.seen_after(HOURS)
    assert (found.cause, found.is_well) == ("finished", True)
    assert "finished at step 100" in found.why and "step-00000100" in found.why and "launch/convert.py" in found.next


def test_a_requested_stop_says_the_reason(run: RunDirectory) -> None:
    run.events(START, ("stopped", {"step": 60, "reason": "time limit near"}))
    run.trained(50, 60)
    found = run.seen_after(HOURS)
    assert (found.cause, found.is_well) == ("stopped", True)
    assert "step 60: time limit near" in found.why and "same command again" in found.next


def test_fresh_records_mean_that_it_goes_on(run: RunDirectory) -> None:
    run.events(START)
    run.trained(10, 20, seconds_per_step=60.0)
    assert run.seen_after(30.0).cause == "running"
    assert run.seen_after(20 * 10 * 60.0 - 1.0).cause == "running"
    assert run.seen_after(20 * 10 * 60.0 + 1.0).cause == "killed"


@pytest.mark.parametrize(
    ("cause", "events", "steps", "advice"),
    [
        ("killed", [START], [10, 20], "scheduler's record"),
        ("killed at the start", [START], [], "--rehearse"),
        ("killed at the start", [START, ("resume", {"step": 20})], [10, 20], "--rehearse"),
        (
            "killed in a save",
            [START, ("saved", {"step": 10}), ("save began", {"step": 20})],
            [10, 20],
            "copy of the state",
        ),
        ("killed", [START, ("save began", {"step": 10}), ("saved", {"step": 10})], [10, 20], "same command again"),
        ("save failed", [START, *2 * [("save failed", {"error": "Permission denied"})]], [10], "doctor.py"),
        ("disk full", [START, *2 * [("save failed", {"error": "No space left on device"})]], [10], "Make room"),
        ("hang", [START, ("hang", {"step": 21, "phase": "data", "seconds": 600})], [10, 20], "machine of that rank"),
        (
            "hang",  # the others, whose connection breaks, record that afterwards
            [START, ("hang", {"step": 21}), ("failed", {"kind": "RuntimeError", "error": "Connection closed by peer"})],
            [10, 20],
            "machine of that rank",
        ),
        *(
            (cause, [START, ("failed", {"step": 20, "kind": kind, "error": error})], [10, 20], advice)
            for cause, kind, error, advice in [
                ("diverged", "DivergedError", "step 20: 9 of the last 100 steps were skipped", "learning_rate"),
                ("save failed", "SaveError", "the run ends without its last checkpoint", "doctor.py"),
                ("disk full", "SaveError", "2 saves failed: [Errno 28] No space left on device", "Make room"),
                ("lost a rank", "RuntimeError", "gloo: Connection closed by peer [127.0.0.1]", "output of all ranks"),
                ("failed", "NothingToPredictError", "no token to predict", "what the message names"),
            ]
        ),
    ],
)
def test_causes_of_an_end_without_a_word(
    run: RunDirectory, cause: str, events: list[tuple[str, dict[str, Any]]], steps: list[int], advice: str
) -> None:
    run.events(*events)
    run.trained(*steps)
    found = run.seen_after(HOURS)
    assert (found.cause, found.is_well) == (cause, False)
    assert advice in found.next


SAVE_FAILED = ("save failed", {"step": 10, "error": "No space left on device"})


@pytest.mark.parametrize(
    "overcome",
    [
        [("step skipped", {"step": 12, "why": "the loss is not finite"})],
        [("went back", {"to_step": 0, "reason": "step 12: too many skips"})],
        [SAVE_FAILED],
        [SAVE_FAILED, ("saved", {"step": 20}), SAVE_FAILED],
        [SAVE_FAILED, ("went back", {"to_step": 0, "reason": "step 12: too many skips"}), SAVE_FAILED],
    ],
)
def test_what_a_run_overcame_is_not_why_it_ended(run: RunDirectory, overcome: list[tuple[str, dict[str, Any]]]) -> None:
    run.trained(10, 20, 30)
    run.events(START, *overcome)
    assert run.seen_after(10.0).cause == "running"
    killed = run.seen_after(HOURS)
    last, facts = overcome[-1]
    assert killed.cause == "killed" and f"Before that: {last} at step {facts.get('step', 0)}" in killed.why
    run.events(START, *overcome, ("saved", {"step": 30}))
    assert "Before that" not in run.seen_after(HOURS).why
    run.events(START, *overcome, ("saved", {"step": 100}), ("finished", {"step": 100}), ("not removed", {}))
    found = run.seen_after(HOURS)
    assert (found.cause, found.is_well) == ("finished", True)


def test_a_start_that_recorded_nothing_is_not_taken_for_the_one_before(run: RunDirectory) -> None:
    run.events(START, ("stopped", {"step": 60, "reason": "time limit near"}))
    run.trained(50, 60)
    append_event(run.path, "starting")
    assert run.seen_after(10.0).cause == "running"
    found = run.seen_after(HOURS)
    assert (found.cause, found.is_well) == ("killed at the start", False) and "--rehearse" in found.next
    append_event(run.path, "refused", error="batch.sequences: the checkpoint has 16, the config 32")
    found = run.seen_after(HOURS)
    assert (found.cause, found.is_well) == ("refused", False) and "the checkpoint has 16, the config 32." in found.why


def test_a_line_that_a_crash_cut_is_left_out(run: RunDirectory) -> None:
    run.events(START, ("stopped", {"step": 20, "reason": "signal SIGTERM"}))
    run.trained(10, 20)
    for name in ("log.jsonl", "events.jsonl"):
        with (run.path / name).open("a") as file:
            file.write('{"kind": "train", "st')
    assert run.seen_after(HOURS).cause == "stopped"


def stop_file(run: RunDirectory) -> None:
    (run.path / "STOP").write_text("")


def damaged_checkpoint(run: RunDirectory) -> None:
    run.checkpoint(20, num_bytes=9, claimed_bytes=10)


def restarts(run: RunDirectory) -> None:
    """As requeue.py counts them."""
    command = [sys.executable, ROOT / "launch" / "slurm" / "requeue.py", "begin", run.path]
    for _ in range(4):
        subprocess.run(command, env=os.environ | {"SLURM_JOB_ID": "17", "PYTHONPATH": str(ROOT)}, check=True)


@pytest.mark.parametrize(
    ("obstacle", "why", "then"),
    [
        (stop_file, "STOP file", "Remove it"),
        (damaged_checkpoint, "step-00000020: weights is missing or has another size", "newest complete one"),
        (restarts, "Job 17 was requeued 3 times", "submit anew"),
    ],
)
def test_obstacles_of_the_next_start(
    run: RunDirectory, obstacle: Callable[[RunDirectory], None], why: str, then: str
) -> None:
    run.events(START, ("stopped", {"step": 20, "reason": "signal SIGTERM"}))
    run.trained(10, 20)
    run.checkpoint(10)
    assert run.seen_after(HOURS).is_well
    obstacle(run)
    found = run.seen_after(HOURS)
    assert not found.is_well and found.cause == "stopped"
    assert why in found.why and then in found.next and "newest complete checkpoint is step-00000010" in found.why


def test_what_stands_in_no_ones_way_is_no_obstacle(run: RunDirectory) -> None:
    """Restarts before the newest checkpoint; a STOP file that a running run will find, or that a finished one left."""
    run.events(START)
    run.trained(10, 20)
    restarts(run)
    run.checkpoint(20)
    stop_file(run)
    found = run.seen_after(10.0)
    assert (found.cause, found.is_well) == ("running", True) and "asked to stop by a STOP file" in found.why
    (run.path / "STOP").unlink()
    assert "requeued" not in run.seen_after(HOURS).why
    run.events(START, ("finished", {"step": 20}))
    stop_file(run)
    assert run.seen_after(HOURS).is_well


def test_a_disk_without_room_for_the_next_checkpoint(run: RunDirectory) -> None:
    run.events(START, ("stopped", {"step": 20, "reason": "signal SIGTERM"}))
    run.checkpoint(20, claimed_bytes=10**18)
    found = run.seen_after(HOURS)
    assert "The disk is full" in found.why and "Make room on the disk first" in found.next


def test_half_written_checkpoints_are_counted(run: RunDirectory) -> None:
    run.events(START, ("save began", {"step": 20}))
    (run.path / "checkpoints" / "step-00000020.partial").mkdir()
    assert "no complete checkpoint, 1 unfinished" in run.seen_after(HOURS).why


def test_the_command_tells_of_a_run(run: RunDirectory) -> None:
    run.events(START, ("finished", {"step": 100}))
    done = doctor_command(run.path)
    assert done.returncode == 0 and done.stdout.startswith("finished: ") and "\nnext: " in done.stdout
    assert json.loads(doctor_command(run.path, "--json").stdout)["cause"] == "finished"
    nothing = doctor_command(run.path / "nowhere")
    assert nothing.returncode == 1 and "does not exist" in nothing.stdout and nothing.stderr == ""


def test_a_directory_beside_a_run_directory_is_an_error(run: RunDirectory, tmp_path: Path) -> None:
    done = doctor_command(run.path, "--directory", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: --directory has no effect with RUN_DIR") and done.stderr.count("\n") == 1
