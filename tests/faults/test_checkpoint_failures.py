"""Disks that are slow, full or gone: training goes on as long as it makes sense, and every failed save is told."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests.faulting import Outcome, Scenario, can_mount, conduct, events_of
from tests.launching import read_log

EIGHT_STEPS = ["train.steps=8", "train.keep_last=9", "engine.zero_stage=3"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failures")


@pytest.fixture(scope="module")
def outcomes(directory: Path, small_config: str) -> dict[str, Outcome]:
    late = [*EIGHT_STEPS, "train.save_every_steps=4"]
    stop = {"how": ["SIGTERM"], "where": "forward"}
    gone = {"run_dir": str(directory / "gone"), "at": 4}
    scenarios = {
        "undisturbed": Scenario(directory / "undisturbed", EIGHT_STEPS),
        "slow": Scenario(directory / "slow", late, {1: {"hold_write": {"name": "step-00000004", "until": 7}}}),
        "waiting": Scenario(
            directory / "waiting",
            faults={0: {"hold_write": {"name": "step-00000002", "until_waited_for": True}}},
        ),
        "stopped": Scenario(directory / "copied", EIGHT_STEPS, {1: {"ask_to_stop": stop}}),
        "copied": Scenario(directory / "copied", EIGHT_STEPS, {rank: {"go_on_after_a_copy": None} for rank in (0, 1)}),
        "once": Scenario(directory / "once", faults={1: {"fail_write": ["step-00000004"]}}),
        "last": Scenario(directory / "last", faults={1: {"fail_write": ["step-00000006"]}}),
        "gone": Scenario(directory / "gone", ["train.steps=8"], {0: {"move_checkpoints_away": gone}}),
    }
    return dict(zip(scenarios, conduct(directory, small_config, list(scenarios.values())), strict=True))


def digests_of(checkpoint: Path) -> dict[str, str]:
    """Of every file but state.json, which holds the config's step counts."""
    assert (checkpoint / "COMPLETE").exists()
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    return {name: entry["blake2b"] for name, entry in files.items() if name != "state.json"}


def test_training_goes_on_while_a_checkpoint_is_written(directory: Path, outcomes: dict[str, Outcome]) -> None:
    """R23: written three steps later, a checkpoint holds byte for byte what a fast disk would have got."""
    slow = outcomes["slow"]
    assert slow.codes == [0, 0], slow.output
    places = slow.order_of("step 4/8", "step 5/8", "step 6/8", "saved " + str(directory / "slow"))
    assert places == sorted(places)
    names = [directory / run / "checkpoints" / "step-00000004" for run in ("slow", "undisturbed")]
    assert digests_of(names[0]) == digests_of(names[1])
    saved = [event for event in events_of(directory / "slow") if event["event"] == "saved"]
    assert [event["step"] for event in saved] == [4, 8]
    assert all(0 <= event["blocked_seconds"] <= event["total_seconds"] for event in saved)
    assert [record["step"] for record in read_log(directory / "slow", "save")] == [4, 8]


def test_a_second_save_waits_for_the_first(directory: Path, outcomes: dict[str, Outcome]) -> None:
    """R23."""
    waiting = outcomes["waiting"]
    assert waiting.codes == [0, 0], waiting.output
    saves = [(e["event"], e["step"]) for e in events_of(directory / "waiting") if "save" in e["event"]]
    assert saves == [(what, step) for step in (2, 4, 6) for what in ("save began", "saved")]
    assert waiting.order_of("step 4/6") < waiting.order_of("step-00000002 in"), "the first was written until then"


def test_saving_right_after_loading_and_loading_right_after_saving(
    directory: Path, outcomes: dict[str, Outcome]
) -> None:
    """R21: neither changes anything."""
    run_dir = directory / "copied"
    assert outcomes["stopped"].codes == [75, 75] and outcomes["copied"].codes == [0, 0], outcomes["copied"].output
    (copy,) = (run_dir / "copy" / "checkpoints").iterdir()
    assert digests_of(copy) == digests_of(run_dir / "checkpoints" / copy.name)
    final = [directory / run / "checkpoints" / "step-00000008" for run in ("copied", "undisturbed")]
    assert digests_of(final[0]) == digests_of(final[1])


def test_one_failed_save_is_told_and_the_next_one_tried(directory: Path, outcomes: dict[str, Outcome]) -> None:
    """R23: a failure on another rank than 0, in a thread, is not lost."""
    once = outcomes["once"]
    assert once.codes == [0, 0] and once.checkpoints == ["step-00000006"], once.output
    newest = directory / "once" / "checkpoints" / "step-00000002"
    aside = directory / "once" / "checkpoints" / "step-00000004.partial"
    assert f"save failed: step 4 could not be written to {aside}: rank 1: [Errno 28]" in once.output
    assert f"the newest checkpoint is {newest}" in once.output
    saves = [(e["event"], e["step"]) for e in events_of(directory / "once") if "save" in e["event"]]
    told = ["save began", "saved", "save began", "save failed", "save began", "saved"]
    assert saves == list(zip(told, (2, 2, 4, 4, 6, 6), strict=True))


def test_a_failed_last_save_is_an_error(directory: Path, outcomes: dict[str, Outcome]) -> None:
    """R18: exit code 1 on all ranks, one message, and the checkpoint before stays."""
    last = outcomes["last"]
    assert last.codes == [1, 1] and last.checkpoints == ["step-00000004"]
    newest = directory / "last" / "checkpoints" / "step-00000004"
    # Noticed before the end of the run, the failed save is tried once more.
    assert "error: the run ends without its last checkpoint" in last.output or "error: 2 saves in a row" in last.output
    assert f"the newest checkpoint is {newest}" in last.output
    assert "Traceback" not in "".join(last.outputs)


def test_a_vanished_directory_ends_the_run_at_the_second_save(directory: Path, outcomes: dict[str, Outcome]) -> None:
    """R18: it is not made again, which would hide the loss."""
    gone = outcomes["gone"]
    assert gone.codes == [1, 1] and not (directory / "gone" / "checkpoints").exists()
    assert gone.output.count("save failed: ") == 2 and "error: 2 saves in a row failed" in gone.output
    assert "Traceback" not in "".join(gone.outputs)
    assert digests_of(directory / "gone" / "moved" / "step-00000002")


@pytest.fixture(scope="module")
def full_disk(directory: Path, small_config: str) -> dict[str, Outcome]:
    """On a small disk, or with writes that fail as on a full one where none can be mounted."""
    scenarios = {}
    for name, options in (("for a while", ["train.steps=8"]), ("for good", [])):
        run_dir = directory / "disk" / name
        fill = {"fill_disk": {"run_dir": str(run_dir), "from": 4, "until_told": name == "for a while"}}
        failing = {"fail_write": ["step-00000004"] + (["step-00000006"] if name == "for good" else [])}
        scenarios[name] = Scenario(run_dir, options, {0: fill if can_mount() else failing})
    size = 10_000_000 if can_mount() else None
    return dict(zip(scenarios, conduct(directory, small_config, list(scenarios.values()), size), strict=True))


def test_a_disk_that_is_full_for_a_while(full_disk: dict[str, Outcome]) -> None:
    """R18: the run goes on, and saves when there is room again."""
    outcome = full_disk["for a while"]
    assert outcome.codes == [0, 0], outcome.output
    assert outcome.output.count("save failed: step 4 could not be written") == 1
    assert "No space left on device" in outcome.output
    assert outcome.checkpoints == ["step-00000008"]
    places = outcome.order_of("save failed", "step-00000006 in", "step-00000008 in", "finished")
    assert all(first < second for first, second in pairwise(places))


def test_a_disk_that_is_full_for_good(full_disk: dict[str, Outcome]) -> None:
    """R18: two saves in a row fail, all ranks end, the older checkpoint stays, and nothing half-written does."""
    outcome = full_disk["for good"]
    assert outcome.codes == [1, 1] and outcome.checkpoints == ["step-00000002"], outcome.output
    assert "error: 2 saves in a row failed, so the run ends" in outcome.output
    assert outcome.output.count("No space left on device") >= 2
    assert "Traceback" not in "".join(outcome.outputs)
