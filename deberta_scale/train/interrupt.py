"""Why this rank would like to stop: a signal, the end of its time, or a STOP file. The loop asks; all ranks agree."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupt:
    """Collects reasons to stop. A signal handler sets one variable and does nothing else."""

    def __init__(
        self, stop_file: Path | None, max_hours: float | None, environment: Mapping[str, str] = os.environ
    ) -> None:
        """`stop_file` is looked for on one rank only, given to it alone: a shared disk is spared a thousand questions
        a step."""
        self._stop_file = stop_file
        self._signal: int | None = None
        self._save_seconds = 60.0
        deadlines = [time.time() + max_hours * 3600] if max_hours is not None else []
        if "SLURM_JOB_END_TIME" in environment:
            deadlines.append(float(environment["SLURM_JOB_END_TIME"]))
        self._deadline = min(deadlines, default=None)

    def listen(self) -> None:
        """Install the handlers; a second signal changes nothing, the stop is already under way."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def note_save_seconds(self, seconds: float) -> None:
        """The slowest save so far decides how long before the deadline to stop."""
        self._save_seconds = max(self._save_seconds, seconds)

    def reason(self) -> str | None:
        """Why to stop, in words, or None."""
        if self._signal is not None:
            return f"signal {signal.Signals(self._signal).name}"
        if self._deadline is not None and time.time() > self._deadline - 3 * self._save_seconds:
            return "time limit near"
        if self._stop_file is not None and self._stop_file.exists():
            return f"stop file {self._stop_file}"
        return None

    def consume(self) -> None:
        """Forget the stop file once the stop is under way, so that the next start does not stop at once."""
        if self._stop_file is not None:
            self._stop_file.unlink(missing_ok=True)
