"""A request to stop, to one rank and at any moment, ends in a whole checkpoint of all ranks."""

import signal
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.faulting import Outcome, Scenario, conduct
from tests.launching import read_log

PLACES = ("data", "forward", "save")
REQUESTS = {"SIGTERM": "signal SIGTERM", "SIGUSR1": "signal SIGUSR1", "STOP": "stop file", "clock": "time limit near"}
MANY_STEPS = ["train.steps=100", "train.evaluate_every_steps=2", "train.max_hours=20"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stops")


@pytest.fixture(scope="module")
def outcomes(directory: Path, small_config: str) -> dict[Any, Outcome]:
    """One run that is stopped at all places by all requests, start after start; and others by name."""

    def stopping(run_dir: Path, where: str, *how: str) -> dict[int, dict[str, Any]]:
        return {1: {"ask_to_stop": {"where": where, "how": how, "run_dir": str(run_dir)}}}

    stopped = directory / "stopped"
    scenarios: dict[Any, Scenario] = {
        (where, how): Scenario(stopped, MANY_STEPS, stopping(stopped, where, how))
        for where, how in product(PLACES, REQUESTS)
    }
    for how in REQUESTS:
        run_dir = directory / how
        scenarios["evaluation", how] = Scenario(run_dir, MANY_STEPS, stopping(run_dir, "evaluation", how))
    scenarios |= {
        "evaluation made up for": Scenario(
            directory / "SIGTERM", MANY_STEPS, stopping(directory / "SIGTERM", "forward", "SIGTERM")
        ),
        "two signals": Scenario(directory / "two", faults=stopping(directory, "forward", "SIGTERM", "SIGUSR1")),
        "SIGINT twice": Scenario(directory / "twice", faults=stopping(directory, "forward", "SIGINT", "SIGINT")),
        "during exit": Scenario(directory / "exit", faults=stopping(directory, "exit", "SIGINT", "SIGTERM")),
        "terminated": Scenario(directory / "terminated", ["train.steps=100"], terminate_at="step   3/"),
        "too slow": Scenario(
            directory / "slow",
            faults={0: {"hold_write": {"name": "step-00000004"}}},
            terminate_at="step 5/6",
            kill_after_seconds=1.0,
        ),
        "too slow, again": Scenario(directory / "slow"),
    }
    return dict(zip(scenarios, conduct(directory, small_config, list(scenarios.values())), strict=True))


def check_stopped(run_dir: Path, outcome: Outcome, reason: str) -> int:
    """Returns the step."""
    assert outcome.codes == [75, 75], outcome.output
    last_line = outcome.output.splitlines()[-1]
    assert last_line.startswith("stopped at step ") and reason in last_line
    step = int(last_line.split()[3])
    assert f"saved {run_dir / 'checkpoints' / f'step-{step:08d}'} in" in outcome.output
    assert f"step-{step:08d}" in outcome.checkpoints
    assert "Traceback" not in "".join(outcome.outputs)
    return step


def test_one_rank_is_asked_to_stop_anywhere(directory: Path, outcomes: dict[Any, Outcome]) -> None:
    """R24: all ranks stop at the same step with its checkpoint, and the next start goes on from there."""
    steps = [0]
    for where, how in product(PLACES, REQUESTS):
        outcome = outcomes[where, how]
        steps.append(check_stopped(directory / "stopped", outcome, REQUESTS[how]))
        assert steps[-2] == 0 or f"step-{steps[-2]:08d}, the newest complete checkpoint" in outcome.output
    assert [record["step"] for record in read_log(directory / "stopped")] == list(range(1, steps[-1] + 1))


@pytest.mark.parametrize("how", REQUESTS)
def test_an_evaluation_is_cut_short(directory: Path, outcomes: dict[Any, Outcome], how: str) -> None:
    """R24: a stop does not wait for the end of a long evaluation."""
    outcome = outcomes["evaluation", how]
    assert check_stopped(directory / how, outcome, REQUESTS[how]) == 2
    assert f"evaluation at step 2 cut short ({REQUESTS[how]}" in outcome.output


def test_an_evaluation_cut_short_is_made_up_for(directory: Path, outcomes: dict[Any, Outcome]) -> None:
    again = outcomes["evaluation made up for"]
    assert check_stopped(directory / "SIGTERM", again, REQUESTS["SIGTERM"]) == 3
    assert again.order_of("held out at step 2: ") < again.order_of("step   3/")
    for run in ("SIGTERM", "stopped"):
        evaluated = [record["step"] for record in read_log(directory / run, "evaluation")]
        last = read_log(directory / run)[-1]["step"]
        assert [step for step in evaluated if step != last] == list(range(2, last, 2)), "each once"


@pytest.mark.parametrize(("name", "reason"), [("two signals", "signal SIGUSR1"), ("SIGINT twice", "signal SIGINT")])
def test_two_signals_are_one_request(directory: Path, outcomes: dict[Any, Outcome], name: str, reason: str) -> None:
    """R28."""
    check_stopped(directory / name.split()[1 if "twice" in name else 0], outcomes[name], reason)


def test_a_signal_during_exit_changes_nothing(outcomes: dict[Any, Outcome]) -> None:
    """R28."""
    outcome = outcomes["during exit"]
    assert outcome.codes == [0, 0] and outcome.checkpoints == ["step-00000006"], outcome.output
    assert "Traceback" not in "".join(outcome.outputs)


def test_a_launcher_that_terminates_all_ranks(directory: Path, outcomes: dict[Any, Outcome]) -> None:
    """R25: the deepspeed launcher sends SIGTERM to all ranks, and SIGKILL to those still there after 30 s."""
    check_stopped(directory / "terminated", outcomes["terminated"], "signal SIGTERM")


def test_a_launcher_that_kills_a_save_that_takes_too_long(directory: Path, outcomes: dict[Any, Outcome]) -> None:
    """R25: the checkpoint before is intact."""
    slow, again = outcomes["too slow"], outcomes["too slow, again"]
    assert slow.codes == [-signal.SIGKILL] * 2
    newest = directory / "slow" / "checkpoints" / "step-00000002"
    assert f"resuming from {newest}, the newest complete checkpoint" in again.output
    assert again.codes == [0, 0] and "finished at step 6" in again.output
