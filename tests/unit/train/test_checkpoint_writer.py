"""Saves are written beside training, one at a time, and what goes wrong is told at the next step."""

import errno
import json
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from deberta_scale.durable import write_described
from deberta_scale.train import checkpoint_writer
from deberta_scale.train.checkpoint import checkpoint_dir, complete_checkpoints, newest_complete, verify
from deberta_scale.train.checkpoint_writer import KeepPolicy, SaveError, Saver
from deberta_scale.train.metrics import RunLog
from deberta_scale.train.state import TrainState


@dataclass
class Engine:
    """Stands in for an engine and, copied, for its state: a number that training changes."""

    value: int = 1
    is_copy: bool = True
    num_bytes: int = 8
    error: OSError | None = None
    room: float = 0.0
    may_write: threading.Event | None = None
    damages_file: bool = False

    def copy_state(self, most_bytes: float) -> "Engine":
        self.room = most_bytes
        if self.num_bytes > most_bytes:
            self.is_copy = False
        return Engine(**vars(self)) if self.is_copy else self

    def write(self, path: Path) -> dict[str, Any]:
        if self.may_write is not None:
            assert self.may_write.wait(60)
        if self.error is not None:
            raise self.error
        described = write_described(path, [str(self.value).encode()])
        if self.damages_file:
            path.write_text("?" * path.stat().st_size)
        return described


@pytest.fixture
def saver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Saver]:
    """Of a single rank."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    monkeypatch.setattr(checkpoint_writer, "copy_state", Engine.copy_state)
    (tmp_path / "checkpoints").mkdir()
    with closing(RunLog(tmp_path, enabled=True, first_step=0)) as log:
        yield Saver(tmp_path, {"precision": "fp32"}, KeepPolicy(last=2), log)
    torch.distributed.destroy_process_group()


def state(step: int) -> TrainState:
    return TrainState(step=step, data_fingerprint="", trajectory={})


def value_in(checkpoint: Path) -> str:
    verify(checkpoint)
    return (checkpoint / "engine" / "rank-00000.safetensors").read_text()


def events(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_written_is_the_state_when_the_save_began(saver: Saver, tmp_path: Path) -> None:
    """R23."""
    engine = Engine(may_write=threading.Event())
    saver.begin(engine, state(1))
    engine.value = 2
    assert saver.has(1) and not saver.has(2) and saver.progress() == [False, False]
    saver.advance(*saver.progress())
    assert not complete_checkpoints(tmp_path)
    assert engine.may_write is not None
    engine.may_write.set()
    saver.finish()
    (written,) = complete_checkpoints(tmp_path)
    assert value_in(written) == "1" and saver.has(1)
    began, saved = events(tmp_path)
    assert (began["event"], saved["event"]) == ("save began", "saved")
    assert 0 <= float(str(began["blocked_seconds"])) <= float(str(saved["blocked_seconds"]))
    assert 0 < float(str(saved["total_seconds"])) <= saver.slowest_seconds + 0.001  # the event gives milliseconds


def test_a_file_that_changes_before_the_save_ends_is_known_as_damaged(saver: Saver, tmp_path: Path) -> None:
    """R19."""
    saver.begin(Engine(), state(1))
    saver.begin(Engine(damages_file=True), state(2))
    saver.finish()
    told: list[str] = []
    assert newest_complete(tmp_path, told.append) == checkpoint_dir(tmp_path, 1)
    assert "passed over step-00000002" in told[0] and "rank-00000.safetensors does not have the digest" in told[0]


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        (Engine(is_copy=False), "a part of the state lies on disk"),
        (Engine(num_bytes=10**15), "a copy of 1,000,000,000,000,000 bytes a rank does not fit into memory"),
    ],
)
def test_what_is_not_copied_is_written_before_training_goes_on(
    saver: Saver, tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: Engine, why: str
) -> None:
    saver.begin(engine, state(1))
    assert saver.progress() == [True, False], "written when begin returns"
    engine.value = 2
    saver.finish()
    assert value_in(complete_checkpoints(tmp_path)[0]) == "1"
    assert f"training waits while the checkpoint of step 1 is written: {why}" in capsys.readouterr().out
    assert str(events(tmp_path)[0]["waited_for_write"]).startswith(why)


def test_ranks_of_a_host_share_its_memory(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    monkeypatch.setattr(checkpoint_writer, "available_memory", lambda: 1000)
    monkeypatch.setattr(saver, "_ranks_on_host", 4)
    saver.begin(engine, state(1))
    saver.finish()
    assert engine.room == 200


def test_a_failed_save_is_told_and_leaves_nothing_behind(
    saver: Saver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R23, R18."""
    saver.begin(Engine(), state(1))
    saver.begin(Engine(error=full_disk()), state(2))
    saver.wait()
    told = capsys.readouterr().out
    assert "save failed: step 2 could not be written to" in told and "No space left on device" in told
    assert str(tmp_path / "checkpoints" / "step-00000001") in told
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert not saver.has(2)
    saver.begin(Engine(value=7), state(2))
    saver.finish()
    assert value_in(complete_checkpoints(tmp_path)[0]) == "7"


def test_failures_in_a_row_end_the_run_others_do_not(saver: Saver, tmp_path: Path) -> None:
    """R18."""
    for step, fails in enumerate((True, False, True, True), 1):
        saver.begin(Engine(error=full_disk() if fails else None), state(step))
        if step < 4:
            saver.wait()
    with pytest.raises(SaveError, match=r"2 saves in a row failed.* the newest checkpoint is .*step-00000002"):
        saver.wait()


def test_the_last_save_must_succeed(saver: Saver) -> None:
    saver.begin(Engine(error=full_disk()), state(1))
    with pytest.raises(SaveError, match="the run ends without its last checkpoint; there is no checkpoint yet"):
        saver.finish()


def test_a_failed_copy_is_a_failed_save(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(engine: Engine, most_bytes: float) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(checkpoint_writer, "copy_state", fail)
    saver.begin(Engine(), state(1))
    with pytest.raises(SaveError, match="without its last checkpoint"):
        saver.finish()


def test_a_failed_publication_is_a_failed_save(saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(partial: Path, final: Path, manifest: dict[str, object]) -> None:
        partial.rename(final)
        raise full_disk()

    monkeypatch.setattr(checkpoint_writer, "publish", fail)
    saver.begin(Engine(), state(1))
    saver.wait()
    assert events(tmp_path)[-1]["event"] == "save failed"
    assert not list((tmp_path / "checkpoints").iterdir()), "without COMPLETE it is none"


def test_superseded_checkpoints_go_and_what_cannot_go_is_told(
    saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """R20."""
    for step in (1, 2, 3):
        saver.begin(Engine(), state(step))
    saver.finish()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-00000003", "step-00000002"]

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr("deberta_scale.train.checkpoint.remove", refuse)
    saver.begin(Engine(), state(4))
    saver.finish()
    assert len(complete_checkpoints(tmp_path)) == 3
    assert f"could not remove {tmp_path / 'checkpoints' / 'step-00000002'}" in capsys.readouterr().out


def test_a_published_save_is_none_that_failed_when_nothing_can_be_removed(
    saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """R20."""

    def fail(*arguments: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(checkpoint_writer, "prune", fail)
    saver.begin(Engine(), state(1))
    saver.finish()
    assert [event["event"] for event in events(tmp_path)] == ["save began", "saved", "not removed"]
    assert "could not look for superseded checkpoints" in capsys.readouterr().out


def test_going_back_keeps_count_of_failures_and_saves_later_steps_again(saver: Saver, tmp_path: Path) -> None:
    saver.begin(Engine(value=1), state(1))
    saver.begin(Engine(value=2), state(2))
    saver.begin(Engine(error=full_disk()), state(3))
    saver.wait()
    saver.go_on_from(checkpoint_dir(tmp_path, 1))
    assert not saver.has(2)
    saver.begin(Engine(error=full_disk()), state(2))
    with pytest.raises(SaveError, match=r"2 saves in a row failed.* the newest checkpoint is .*step-00000001"):
        saver.wait()
