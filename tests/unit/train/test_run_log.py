"""The log of a run survives what happens to its disk."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from deberta_scale.train.metrics import RunLog


def test_a_record_that_cannot_be_written_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R18: a full disk does not end the run through its log."""
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    with closing(RunLog(tmp_path, enabled=True, first_step=0)) as log:
        log.event("saved", step=4)
        log.scalars("train", 5, {"loss": 1.0})
    told = capsys.readouterr().out
    assert "not written to the log ([Errno 28]" in told and '"event": "saved", "step": 4' in told
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [5]


def test_lines_of_others_in_the_log_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "mark": "set by a script"}\n{"kind": "train", "step": 2, "loss": 4.5}\n'
    )
    with closing(RunLog(tmp_path, enabled=True, first_step=2)) as log:
        assert log.take_last_loss() == 4.5


def test_it_knows_which_steps_were_evaluated_before(tmp_path: Path) -> None:
    with closing(RunLog(tmp_path, enabled=True, first_step=0)) as log:
        for step in (2, 4):
            log.scalars("evaluation", step, {"loss": 1.0})
            log.scalars("train", step + 1, {"loss": 1.0})
    with closing(RunLog(tmp_path, enabled=True, first_step=3)) as log:
        assert [step for step in range(6) if log.evaluated(step)] == [2]


def test_a_record_that_was_cut_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    """R18: what a disk that became full had no room for; it was printed."""
    events = tmp_path / "events.jsonl"
    events.write_text('{"event": "start", "step": 0}\n{"event": "sav')
    with closing(RunLog(tmp_path, enabled=True, first_step=0)) as log:
        log.event("resume", step=0)
    assert [json.loads(line)["event"] for line in events.read_text().splitlines()] == ["start", "resume"]
