"""Trainings with bad steps in them, and ranks that hang. See guard_worker.py and hang_worker.py for the faults."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from deberta_scale.train.watchdog import EXIT_HANGS
from tests.launching import ROOT, Ranks, free_port, read_log, start

FAULTS = ROOT / "tests" / "faults"
SMALL = ["batch.sequences=8", "batch.micro_sequences=2", "data.sequence_length=32", "optimizer.learning_rate=1e-3"]
SMALL += ["train.evaluate_sequences=4", "guards.spike_after_steps=3"]
SIX_STEPS = [*SMALL, "train.steps=6", "guards.spike_factor=1"]
WAYS_BACK = [*SMALL, "train.steps=10", "train.save_every_steps=4", "guards.max_skips=2", "engine.zero_stage=1"]
ENGINES = [("fp32", 0), *product(["fp32", "bf16"], [1, 2, 3]), ("fp16", 1), ("fp16", 3)]


def options_of(precision: str, stage: int) -> list[str]:
    return [*SIX_STEPS, f"engine.zero_stage={stage}", f"engine.precision={precision}"]


def trainings(directory: Path) -> dict[Any, dict[str, Any]]:
    every_step_from_6 = {str(step): "nan" for step in range(6, 31)}
    checkpoint = directory / "run-1" / "checkpoints" / "step-00000004"
    found: dict[Any, dict[str, Any]] = {
        "clean": {"options": WAYS_BACK},
        "3 bad steps": {"options": WAYS_BACK, "bad": {"5": 100, "6": "nan", "8": 100}},
        "3 steps never seen": {"options": WAYS_BACK, "passed_over": [5, 6, 8]},
        "bad from step 6 on": {
            "options": [*WAYS_BACK, "train.steps=30", "guards.max_rollbacks=2"],
            "bad": every_step_from_6,
        },
        "no checkpoint yet": {"options": WAYS_BACK, "bad": {"1": "nan", "2": "nan", "3": "nan"}},
        "far apart": {
            "options": [*WAYS_BACK, "guards.window_steps=3", "guards.max_skips=1"],
            "bad": {"4": "nan", "7": "nan", "10": "nan"},
        },
        "10 sigma": {"options": WAYS_BACK, "bad": {"5": {"sigmas": 10.0}}},
        "7 sigma": {"options": WAYS_BACK, "bad": {"5": {"sigmas": 7.0}}},
        "broken weights": {"options": WAYS_BACK, "break_weights_after": 8},
        "one passed over": {"options": [*WAYS_BACK, "train.log_every_steps=2"], "passed_over": [5]},
        "broken padding": {"options": [*SIX_STEPS, "model.vocab_size=641"], "break_padding": True},
        "resumed": {"options": [*WAYS_BACK, f"resume={checkpoint}"], "bad": {"5": 100, "6": "nan", "8": 100}},
        "overflows": {
            "options": [*options_of("fp16", 1), "guards.max_skips=0"],
            "bad": {str(step): 1000 for step in range(2, 5)},
        },
    }
    for precision, stage in ENGINES:
        options = options_of(precision, stage)
        usual = 0.01 if precision == "fp16" else 1.0  # or else the spike overflows, which is another matter
        losses = dict.fromkeys(map(str, range(1, 7)), usual)
        found[precision, stage, "bad"] = {"options": options, "bad": losses | {"3": "nan", "5": 1.5 * usual}}
        found[precision, stage, "never seen"] = {"options": options, "bad": losses, "passed_over": [3, 5]}
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, small_config: str) -> dict[Any, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("guards")
    (directory / "config.yaml").write_text(small_config)
    wanted = trainings(directory)
    (directory / "trainings.json").write_text(json.dumps(list(wanted.values())))
    paths = [directory / name for name in ("trainings.json", "result.json", "config.yaml")]
    codes, outputs = start(2, FAULTS / "guard_worker.py", *paths).wait(seconds=600.0)
    assert codes == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    return dict(zip(wanted, json.loads(paths[1].read_text()), strict=True))


def events(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [event for event in result["events"] if event["event"] == name]


@pytest.mark.parametrize(("precision", "stage"), ENGINES)
def test_a_skipped_step_leaves_nothing_behind(results: dict[Any, dict[str, Any]], precision: str, stage: int) -> None:
    """R14, R15: after a NaN on one rank and a spike, masters, moments and counters are those of a run that never saw
    these samples, at all stages and precisions."""
    bad, never_seen = results[precision, stage, "bad"], results[precision, stage, "never seen"]
    assert bad["digest"] == never_seen["digest"]
    nan, spike = events(bad, "step skipped")
    assert (nan["step"], nan["samples"], nan["value"]) == (3, [16, 23], "nan")
    assert nan["why"] == "the loss is not finite on rank 1"
    assert (spike["step"], spike["samples"]) == (5, [32, 39])
    assert spike["why"].startswith("the gradient norm is ") and float(spike["value"]) > max(bad["norms"][:2])
    logged = [record for record in bad["log"] if record["kind"] == "train"]
    assert [(record["step"], record["skipped_steps"]) for record in logged] == [(1, 0), (2, 0), (4, 1), (6, 2)]
    assert logged[-1]["samples_seen"] == 48
    assert logged[-1]["learning_rate"] == [r for r in never_seen["log"] if r["kind"] == "train"][-1]["learning_rate"]


def test_a_gradient_of_10_sigma_is_skipped_and_one_of_7_is_not(results: dict[Any, dict[str, Any]]) -> None:
    """R15: with the default factor of 8."""
    skipped, trained = results["10 sigma"], results["7 sigma"]
    assert [event["step"] for event in events(skipped, "step skipped")] == [5]
    assert not events(trained, "step skipped")
    for result in (skipped, trained):
        assert result["errors"] == [None, None] and result["steps"] == [10, 10]
        assert not events(result, "went back")


def test_after_too_many_bad_steps_the_run_goes_back_and_passes_them_over(results: dict[Any, dict[str, Any]]) -> None:
    """R15: what is trained then is what a run trains that never sees these samples."""
    result, never_seen = results["3 bad steps"], results["3 steps never seen"]
    assert result["errors"] == [None, None] and result["steps"] == [10, 10]
    (back,) = events(result, "went back")
    assert (back["to_step"], back["passed_over"]) == (4, [5, 6, 8])
    assert back["samples"] == [[32, 39], [40, 47], [56, 63]]
    assert [event["step"] for event in events(result, "step passed over")] == [5, 6, 8]
    assert result["digest"] == never_seen["digest"]
    assert result["state"]["passed_over"] == [5, 6, 8] and result["state"]["num_skipped"] == 3
    logged = [record["step"] for record in result["log"] if record["kind"] == "train"]
    assert logged == [1, 2, 3, 4, 7, 9, 10]  # each step once


def test_speeds_are_of_the_steps_that_were_made(results: dict[Any, dict[str, Any]]) -> None:
    """A step that is passed over takes no time, and must not make the others look fast."""
    for record in (r for r in results["one passed over"]["log"] if r["kind"] == "train"):
        tokens_of_a_step = record["read_tokens_per_second"] * record["seconds_per_step"]
        assert tokens_of_a_step == pytest.approx(8 * 32), record["step"]


def test_a_run_resumed_before_the_bad_steps_is_the_same_run(results: dict[Any, dict[str, Any]]) -> None:
    """R15, R16: running mean and counts go on as they were."""
    assert results["resumed"]["digest"] == results["3 bad steps"]["digest"]
    assert results["resumed"]["state"] == results["3 bad steps"]["state"]


def test_going_back_in_vain_ends_the_run(results: dict[Any, dict[str, Any]]) -> None:
    """R15: with one message on all ranks, which says what to do."""
    result = results["bad from step 6 on"]
    assert len(events(result, "went back")) == 2
    error = result["errors"][0]
    assert result["errors"] == [error, error]
    assert "guards.max_rollbacks" in error and "Lower optimizer.learning_rate" in error and "is intact" in error


def test_without_a_checkpoint_too_many_bad_steps_end_the_run(results: dict[Any, dict[str, Any]]) -> None:
    """R14."""
    result = results["no checkpoint yet"]
    assert result["steps"] == [3, 3]
    for error in result["errors"]:
        assert error.startswith(
            "step 3: 3 of the last 100 steps were skipped, and there is no checkpoint to go back to."
        )
        assert "Lower optimizer.learning_rate" in error


def test_bad_steps_far_apart_are_skipped_only(results: dict[Any, dict[str, Any]]) -> None:
    """R15: what counts are skips among the last `window_steps`. The last step of a run may be one, too."""
    result = results["far apart"]
    assert result["errors"] == [None, None] and result["steps"] == [10, 10]
    assert [event["step"] for event in events(result, "step skipped")] == [4, 7, 10]
    assert not events(result, "went back")


def test_weights_that_are_not_finite_are_never_saved(results: dict[Any, dict[str, Any]]) -> None:
    """The run goes back instead, and ends as if nothing had happened."""
    result = results["broken weights"]
    (back,) = events(result, "went back")
    assert (back["to_step"], back["passed_over"]) == (4, []) and "weights are not finite" in back["reason"]
    assert result["errors"] == [None, None] and result["digest"] == results["clean"]["digest"]


def test_what_pads_weights_may_be_anything(results: dict[Any, dict[str, Any]]) -> None:
    """A parameter whose size the ranks do not divide has padding, in stage 3."""
    result = results["broken padding"]
    assert result["errors"] == [None, None] and result["steps"] == [6, 6]
    assert not events(result, "went back") and [event["step"] for event in events(result, "saved")] == [6]


def test_overflows_of_fp16_are_no_failures(results: dict[Any, dict[str, Any]]) -> None:
    """They are how the loss scale is found: counted apart, and never a reason to go back."""
    result = results["overflows"]
    assert result["errors"] == [None, None] and result["steps"] == [6, 6]
    assert result["state"]["num_overflowed"] == 3 and result["state"]["num_skipped"] == 0
    assert not events(result, "step skipped") and not events(result, "went back")
    assert [r["overflowed_steps"] for r in result["log"] if r["kind"] == "train"][-1] == 3


def hang(directory: Path, config: str, seconds: float, *how: str) -> tuple[Ranks, Path]:
    """Rank 1 of two stays where `how` says; watchdogs wait for `seconds`."""
    (directory / "config.yaml").write_text(config)
    options = [f"run_dir={directory / 'run'}", f"guards.hang_seconds={seconds}", *SMALL, "train.steps=5"]
    return start(2, FAULTS / "hang_worker.py", *how, directory / "config.yaml", *options), directory / "run"


def test_a_rank_that_never_arrives_ends_the_group(tmp_path: Path, small_config: str) -> None:
    """R27: its own watchdog says where it is, and where in the program."""
    ranks, run_dir = hang(tmp_path, small_config, 10.0, "held", "data", "3")
    codes, outputs = ranks.wait()
    assert codes == [EXIT_HANGS, EXIT_HANGS], outputs
    assert "error: rank 1 makes no progress, at step 3, data, for " in outputs[1], outputs[1]
    assert "in enter_and_stay" in outputs[1]  # the stack of its main thread
    records = map(json.loads, (run_dir / "events.jsonl").read_text().splitlines())
    event = next(record for record in records if record["event"] == "hang" and record["rank"] == 1)
    assert (event["step"], event["phase"]) == (3, "data")
    assert event["seconds"] >= 10.0 and event["furthest_behind"] == [1]
    assert [record["step"] for record in read_log(run_dir)] == [1, 2]


def test_a_process_that_stands_still_is_named_by_the_others(tmp_path: Path, small_config: str) -> None:
    """R27: its own watchdog does not run either."""
    ranks, run_dir = hang(tmp_path, small_config, 10.0, "stopped", "backward", "3")
    first, second = ranks.processes
    try:
        output, _ = first.communicate(timeout=240.0)
        assert first.returncode == EXIT_HANGS and second.poll() is None
    finally:
        ranks.kill()
    assert "error: rank 0 makes no progress, at step 3, backward, for " in output
    assert "not heard of: rank 1 (last at step " in output
    last = json.loads((run_dir / "events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "hang" and last["not_heard_of"] == [1]


def test_a_rank_that_is_never_started_ends_the_others(tmp_path: Path, small_config: str) -> None:
    """R27: the group never forms."""
    (tmp_path / "config.yaml").write_text(small_config)
    options = [f"run_dir={tmp_path / 'run'}", "guards.hang_seconds=10"]
    alone = start(
        1, FAULTS / "hang_worker.py", "held", "none", "0", tmp_path / "config.yaml", *options,
        WORLD_SIZE="2", MASTER_PORT=str(free_port()),
    )  # fmt: skip
    codes, outputs = alone.wait()
    assert codes == [EXIT_HANGS]
    assert "error: rank 0 makes no progress, at start: joining the other ranks" in outputs[0], outputs[0]
    assert "not heard of: rank 1 (never)" in outputs[0]
