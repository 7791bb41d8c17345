"""Every way to ask a run to stop is heard, and named."""

import os
import signal
from pathlib import Path

import pytest

from deberta_scale.train.interrupt import Interrupt


def test_nothing_to_stop_for(tmp_path: Path) -> None:
    assert Interrupt(tmp_path / "STOP", None, {}).reason() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal(tmp_path: Path, number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    interrupt = Interrupt(tmp_path / "STOP", None, {})
    try:
        interrupt.listen()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert interrupt.reason() == f"signal {number.name}"
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_stop_file_is_consumed_with_the_stop(tmp_path: Path) -> None:
    interrupt = Interrupt(tmp_path / "STOP", None, {})
    (tmp_path / "STOP").touch()
    assert "STOP" in (interrupt.reason() or "")
    interrupt.consume()
    assert interrupt.reason() is None


def test_time_limits_leave_room_for_the_save(tmp_path: Path) -> None:
    assert Interrupt(tmp_path / "STOP", 0.02, {}).reason() == "time limit near"
    patient = Interrupt(tmp_path / "STOP", 1.0, {})
    assert patient.reason() is None
    patient.note_save_seconds(1300.0)
    assert patient.reason() == "time limit near"
    assert Interrupt(tmp_path / "STOP", None, {"SLURM_JOB_END_TIME": "1000"}).reason() == "time limit near"


def test_ranks_that_do_not_look_for_the_stop_file(tmp_path: Path) -> None:
    other = Interrupt(None, None, {})
    assert other.reason() is None
    other.consume()
