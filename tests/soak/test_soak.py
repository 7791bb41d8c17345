"""One fault of each kind, on the smallest scale; and what the soak itself must see. `make soak` does it at length."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from tests.launching import ROOT
from tests.published import publish_checkpoint
from tests.soak.__main__ import run_soak
from tests.soak.fault_plan import Kind, last_step, plan
from tests.soak.seeing import Violation
from tests.soak.verdict import violations

STEPS = 4


def write_config(directory: Path, shards: Path) -> Path:
    """What `make soak` trains, on these shards."""
    config = yaml.safe_load((ROOT / "tests" / "soak" / "soak.yaml").read_text())
    config["model"]["vocab_size"], config["data"]["shards"] = 640, str(shards)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return directory / "config.yaml"


def test_a_run_survives_one_fault_of_each_kind(
    tmp_path: Path, prepared_shards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every start goes on from the newest intact checkpoint, and the end is that of the undisturbed run."""
    code = run_soak(write_config(tmp_path, prepared_shards), tmp_path / "soak", seed=1, num_faults=len(Kind))
    output, errors = capfd.readouterr()
    assert code == 0, output + errors
    assert all(kind.value in output for kind in Kind)
    assert re.search(r"8 faults survived in \d+ steps: 0 steps with wrong samples", output)


def test_a_soak_that_fails_says_how_to_have_it_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_soak(write_config(tmp_path, tmp_path / "none"), tmp_path / "soak", seed=5, num_faults=9) == 1
    errors = capfd.readouterr().err
    assert "error: seed 5, the undisturbed run: ranks ended with [1]" in errors and "Traceback" not in errors
    assert "make soak SOAK_SEED=5 SOAK_FAULTS=1" in errors


def test_a_seed_fixes_the_faults_and_fewer_are_the_first_of_more() -> None:
    faults = plan(3, 24)
    assert faults == plan(3, 24) and faults[:5] == plan(3, 5) and faults != plan(4, 24)
    assert all({fault.kind for fault in faults[begin : begin + 8]} == set(Kind) for begin in (0, 8, 16))
    assert {fault.world_size for fault in faults} == {1, 2, 3, 4}
    assert all(first.world_size != then.world_size for first, then in pairwise(faults))
    assert [fault.step for fault in faults] == sorted({fault.step for fault in faults})
    assert last_step(faults) > faults[-1].step
    assert faults[0].chance().random() == plan(3, 1)[0].chance().random() != faults[1].chance().random()


def write_run(run_dir: Path) -> None:
    """As a run of a few steps leaves its directory, as far as it is looked at."""
    publish_checkpoint(run_dir, {"weight": torch.zeros(3)}, step=STEPS)
    records = [{"kind": "train", "step": step, "loss": 2.0, "sample_digest": 7 * step} for step in range(1, STEPS + 1)]
    records.append({"kind": "evaluation", "step": STEPS, "loss": 3.0})
    write_lines(run_dir / "log.jsonl", records)
    write_lines(run_dir / "events.jsonl", [{"event": "start", "step": 0}, {"event": "finished", "step": STEPS}])


def write_lines(path: Path, records: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("disturbed", "undisturbed"):
        write_run(tmp_path / name)
    return tmp_path / "disturbed", tmp_path / "undisturbed"


def test_equal_runs_are_found_equal(runs: tuple[Path, Path]) -> None:
    assert violations(*runs, STEPS) == []


@pytest.mark.parametrize(
    ("number", "change", "told"),
    [
        (1, {"sample_digest": 99}, "other samples than in the undisturbed run at steps [2]"),
        (1, {"step": 3}, "missing [2], repeated [3]"),
        (2, {"loss": 2.001}, "train losses differ"),
        (2, {"loss": float("nan")}, "train losses differ"),
        (4, {"loss": 2.9}, "evaluation losses differ"),
        (4, {"step": 3}, "evaluation losses differ"),
    ],
)
def test_a_record_that_differs_is_found(
    runs: tuple[Path, Path], number: int, change: dict[str, object], told: str
) -> None:
    log = runs[0] / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    records[number] |= change
    write_lines(log, records)
    assert told in "; ".join(violations(*runs, STEPS))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("STOP", "files in only one of the run directories: ['STOP']"),
        ("checkpoints/step-00000009.partial", "left behind: checkpoints/step-00000009.partial"),
        ("checkpoints/step-00000004/state.json.tmp", "left behind: checkpoints/step-00000004/state.json.tmp"),
        ("checkpoints/step-00000003", "checkpoints that are not whole: ['step-00000003']"),
        ("checkpoints/step-00000004/engine/rank-00000.safetensors", "not whole: ['step-00000004']"),
    ],
)
def test_what_does_not_belong_into_the_directory_is_found(runs: tuple[Path, Path], name: str, told: str) -> None:
    (runs[0] / name).write_bytes(b"")
    assert told in "; ".join(violations(*runs, STEPS))


def test_events_that_should_not_be_and_those_that_lack_are_found(runs: tuple[Path, Path]) -> None:
    events = runs[0] / "events.jsonl"
    write_lines(events, [{"event": "start", "step": 0}, {"event": "hang", "rank": 1}])
    found = "; ".join(violations(*runs, STEPS))
    assert "the last event is not the end at step 4" in found and "events of trouble" in found
    events.write_text('{"event": "sta{"event": "finished", "step": 4}\n')
    with pytest.raises(Violation, match=r"line 1 of .*events.jsonl is no record"):
        violations(*runs, STEPS)
