"""Why a run last stopped, from what its directory holds, and what to do next. Reads only; imports no torch.

Told apart, in this order: a directory that holds no run; a start that recorded nothing; a run that finished; one that
stopped on request; one that hung; one that ended with an error; one that seems to go on; one that ended without a word,
where the last record says in which phase. What a run overcame is no cause: a save that failed once, a step that was
skipped. Beside the cause, what stands in the way of the next start: a full disk, a STOP file, damaged checkpoints,
restarts that lead nowhere.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deberta_scale.doctor_records import RunState, read_state

MAX_RESTARTS_WITHOUT_PROGRESS = 3
"""After so many without a newer checkpoint, a job of SLURM is not requeued again (launch/slurm)."""
_SAVE_ENDS = ("saved", "save failed")
_TROUBLES = ("step skipped", "went back", "loss jumped")
_SAVE_ERRORS = ("CheckpointError", "SaveError")
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer")
_AGAIN = "Run the same command again: it goes on from the newest complete checkpoint."
_EXPORT = "Export it with launch/convert.py."
_CALMER = (
    "Look at the samples that events.jsonl names, lower optimizer.learning_rate or lengthen schedule.warmup_steps."
)
_MEMORY_AT_START = (
    "Most likely the first step did not fit into memory: read the end of the output, and try the same command with"
    " --rehearse, a smaller batch.micro_sequences, or engine.activation_checkpointing=non_reentrant."
)
_SILENT = "It ended without recording why: its processes were killed (memory, time limit, a lost node) or crashed."


@dataclass(frozen=True)
class Diagnosis:
    is_well: bool
    """Whether the same command may be run again, or the run is done or going on."""
    cause: str
    """One word or two, for machines: finished, stopped, running, disk full, killed in a save, ..."""
    why: str
    """A few sentences."""
    next: str
    """What to do."""


def diagnose(run_dir: Path, now: float | None = None) -> Diagnosis:
    """Raises ValueError when the directory cannot be read. `now`: seconds since the epoch."""
    if not (run_dir / "config.yaml").is_file():
        missing = "holds no config.yaml" if run_dir.is_dir() else "does not exist"
        why = f"{run_dir} {missing}: no run was started there, or its start was refused before the first record."
        return Diagnosis(False, "no run", why, "Look at what the start printed, or give the run_dir of the config.")
    state = read_state(run_dir, time.time() if now is None else now)
    cause = _explain(state)
    obstacles = _obstacles(state, cause.cause)
    told = [f"The last record is of step {state.step}, {_ago(state.silence_seconds)} old.", cause.why, _kept(state)]
    return Diagnosis(
        is_well=cause.is_well and not obstacles,
        cause=cause.cause,
        why=" ".join([*told, *(what for what, _ in obstacles)]),
        next=" ".join([*(remedy for _, remedy in obstacles), cause.next]),
    )


def _explain(state: RunState) -> Diagnosis:
    """The cause alone: the first that the records show."""
    explanations: list[Callable[[RunState], Diagnosis | None]] = [
        _start_without_record,
        _refused,
        _finished,
        _stopped,
        _hung,
        _failed,
        _saves_failed,
        _running,
        _killed_in_a_save,
        _killed_at_the_start,
    ]
    found = next(filter(None, (explain(state) for explain in explanations)), None)
    then = f"Read the end of the output and of the scheduler's record. {_AGAIN}"
    return found or Diagnosis(False, "killed", f"{_SILENT}{_trouble(state)}", then)


def _start_without_record(state: RunState) -> Diagnosis | None:
    if not state.only_began:
        return None
    if state.silence_seconds < state.most_silence_seconds:
        return Diagnosis(True, "running", "It is starting: data, model and engine are being made.", _wait(state))
    why = "The last start ended before its first step, while it made model and engine, without recording why."
    return Diagnosis(False, "killed at the start", why, _MEMORY_AT_START)


def _refused(state: RunState) -> Diagnosis | None:
    event = state.last("refused")
    if event is None:
        return None
    why = f"The last start was refused: {str(event.get('error')).rstrip('.')}."
    return Diagnosis(False, "refused", why, f"Repair what the message names. {_AGAIN}")


def _finished(state: RunState) -> Diagnosis | None:
    event = state.last("finished")
    if event is None:
        return None
    exported = state.last("exported")
    then = _EXPORT if exported is None else f"Its best model is {exported.get('model')}; see launch/evaluate.py."
    return Diagnosis(True, "finished", f"The run finished at step {event.get('step')}.", then)


def _stopped(state: RunState) -> Diagnosis | None:
    event = state.last("stopped")
    if event is None:
        return None
    why = f"It stopped on request at step {event.get('step')}: {event.get('reason')}."
    return Diagnosis(True, "stopped", why, _AGAIN)


def _hung(state: RunState) -> Diagnosis | None:
    event = state.last("hang")
    if event is None:
        return None
    behind = f"furthest behind: {event.get('furthest_behind')}, not heard of: {event.get('not_heard_of')}"
    phase = f"step {event.get('step')}, {event.get('phase')}"
    why = f"It hung for {event.get('seconds')} seconds in {phase}, and was ended; {behind}."
    return Diagnosis(False, "hang", why, f"Look at the output and the machine of that rank. {_AGAIN}")


def _failed(state: RunState) -> Diagnosis | None:
    """It recorded the error that ended it."""
    event = state.last("failed")
    if event is None:
        return None
    kind, error = event.get("kind"), str(event.get("error"))
    why = f"It ended at step {event.get('step')} with an error: {error.rstrip('.')}.{_trouble(state)}"
    if kind == "DivergedError":
        return Diagnosis(False, "diverged", why, _CALMER)
    if kind in _SAVE_ERRORS:
        return _of_save(error, why)
    if any(words in error for words in _LOST_PEER):
        why = f"{why} So another rank had ended before."
        return Diagnosis(False, "lost a rank", why, f"Read the end of the output of all ranks. {_AGAIN}")
    return Diagnosis(False, "failed", why, f"Repair what the message names. {_AGAIN}")


def _saves_failed(state: RunState) -> Diagnosis | None:
    """Two in a row end a run, though the disk may have been too full to record the end."""
    ends = [event for event in state.events if event.get("event") in (*_SAVE_ENDS, "went back")]
    if [event["event"] for event in ends[-2:]] != ["save failed"] * 2:
        return None
    error = str(ends[-1].get("error"))
    return _of_save(error, f"Two checkpoints in a row could not be written: {error}.")


def _of_save(error: str, why: str) -> Diagnosis:
    if "No space left" in error or "quota" in error.lower():
        then = f"Make room on the disk of the run directory, or lower train.keep_last. {_AGAIN}"
        return Diagnosis(False, "disk full", why, then)
    then = f"Repair what the message names (python launch/doctor.py --directory). {_AGAIN}"
    return Diagnosis(False, "save failed", why, then)


def _running(state: RunState) -> Diagnosis | None:
    if state.silence_seconds >= state.most_silence_seconds:
        return None
    asked = " It was asked to stop by a STOP file." if state.stop_file else ""
    why = f"No end was recorded and the records are fresh: it seems to go on.{asked}"
    return Diagnosis(True, "running", why, _wait(state))


def _wait(state: RunState) -> str:
    minutes = f"{state.most_silence_seconds / 60:.0f} minutes"
    return f"Wait: when nothing is recorded for {minutes}, it has ended. Or look at its output."


def _killed_in_a_save(state: RunState) -> Diagnosis | None:
    event = state.last("save began", *_SAVE_ENDS)
    if event is None or event["event"] != "save began":
        return None
    why = f"{_SILENT} A save of step {event.get('step')} had begun and was not published; what it left is not used."
    then = f"Look for `out of memory` in the system's log, a copy of the state is held during a save. {_AGAIN}"
    return Diagnosis(False, "killed in a save", f"{why}{_trouble(state)}", then)


def _killed_at_the_start(state: RunState) -> Diagnosis | None:
    started = state.events[0].get("step", 0) if state.events else 0
    went_on = any(event.get("step", 0) > started or event.get("event") == "went back" for event in state.events)
    if state.step > started or went_on:
        return None
    why = f"{_SILENT} It had started, and not one interval of steps was logged after that."
    return Diagnosis(False, "killed at the start", why, _MEMORY_AT_START)


def _trouble(state: RunState) -> str:
    """What had gone wrong since the last checkpoint, and may have to do with the end; a sentence, or nothing."""
    event = state.last(*_TROUBLES, *_SAVE_ENDS)
    if event is None or event["event"] == "saved":
        return ""
    step = event.get("step", event.get("to_step"))
    reasons = (event[key] for key in ("reason", "why", "message", "error") if event.get(key))
    return f" Before that: {event['event']} at step {step} ({next(reasons, 'see events.jsonl')})."


def _obstacles(state: RunState, cause: str) -> list[tuple[str, str]]:
    """What stands in the way of the next start, and the remedy."""
    found, is_over = [], cause == "finished"
    if state.disk_is_full and not is_over:
        free, needed = state.free_bytes / 1e9, state.checkpoints.largest_bytes / 1e9
        room = f"{free:.2f} GB are free, a checkpoint takes {needed:.2f} GB."
        found.append((f"The disk is full: {room}", "Make room on the disk first."))
    if state.stop_file and not is_over and cause != "running":
        found.append(
            ("A STOP file lies in the run directory.", "Remove it, or the next start stops after its first step.")
        )
    damaged = state.checkpoints.damaged
    if damaged:
        names = "; ".join(f"{name}: {problem}" for name, problem in damaged.items())
        where = "the newest complete one" if state.checkpoints.complete else "nothing, so it begins anew"
        found.append((f"Damaged: {names}.", f"The next start passes over what is damaged and goes on from {where}."))
    restarts = state.slurm.get("begun", 1) - 1
    no_progress = state.checkpoints.newest_step <= state.slurm.get("step", 0)
    if restarts >= MAX_RESTARTS_WITHOUT_PROGRESS and no_progress and not is_over and cause != "running":
        found.append(
            (
                f"Job {state.slurm.get('job')} was requeued {restarts} times without a newer checkpoint.",
                "It is not requeued again: repair the cause and submit anew.",
            )
        )
    return found


def _kept(state: RunState) -> str:
    found = state.checkpoints
    unfinished = f", {len(found.unfinished)} unfinished" if found.unfinished else ""
    if not found.complete:
        return f"There is no complete checkpoint{unfinished}."
    return f"The newest complete checkpoint is {found.complete[-1]}, of {len(found.complete)}{unfinished}."


def _ago(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 7200 else f"{seconds / 60:.0f} minutes"
