"""A run goes on with other ranks, another stage, another precision: the same command, and the same losses."""

import json
import shutil
from pathlib import Path

import pytest

from deberta_scale.train.guards import jump_after_resume
from tests.launching import PRETRAIN, read_log, start

OPTIONS = ["train.steps=6", "train.save_every_steps=3", "train.evaluate_every_steps=6"]


def pretrain(ranks: int, config_path: Path, run_dir: Path, *options: str) -> str:
    codes, outputs = start(ranks, PRETRAIN, config_path, f"run_dir={run_dir}", *OPTIONS, *options).wait()
    assert not any(codes), outputs[0][-3000:]
    return outputs[0]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, small_config: str) -> Path:
    """config.yaml, and a run of two ranks at ZeRO 3 that was not interrupted."""
    directory = tmp_path_factory.mktemp("undisturbed")
    (directory / "config.yaml").write_text(small_config)
    pretrain(2, directory / "config.yaml", directory / "run")
    return directory


def interrupted(undisturbed: Path, tmp_path: Path) -> Path:
    """The run as it stood when it had saved step 3 and was killed later."""
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed / "run", run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step-00000006")
    return run_dir


@pytest.mark.parametrize(
    ("ranks", "options", "told"),
    [
        (4, ["engine.zero_stage=1"], "checkpoint of 2 rank(s), ZeRO 3, fp32 → 4 rank(s), ZeRO 1, fp32"),
        (
            1,
            ["engine.zero_stage=0", "engine.activation_checkpointing=non_reentrant", "batch.micro_sequences=8"],
            "checkpoint of 2 rank(s), ZeRO 3, fp32 → 1 rank(s), ZeRO 0, fp32",
        ),
        (
            2,
            ["engine.zero_stage=2", "engine.precision=bf16"],
            "checkpoint of 2 rank(s), ZeRO 3, fp32 → 2 rank(s), ZeRO 2, bf16",
        ),
    ],
)
def test_the_run_goes_on(undisturbed: Path, tmp_path: Path, ranks: int, options: list[str], told: str) -> None:
    """R22."""
    run_dir = interrupted(undisturbed, tmp_path)
    output = pretrain(ranks, undisturbed / "config.yaml", run_dir, *options)
    assert told in output
    assert ("ranks 2 to 3 have no random state" in output) == (ranks == 4)
    assert ("in another precision" in output) == ("engine.precision=bf16" in options)
    assert "warning" not in output
    tolerance = 2e-2 if "engine.precision=bf16" in options else 1e-6
    for kind in ("train", "evaluation"):
        found, expected = read_log(run_dir, kind), read_log(undisturbed / "run", kind)
        assert [record["step"] for record in found] == [record["step"] for record in expected]
        losses = [record["loss"] for record in expected]
        assert [record["loss"] for record in found] == pytest.approx(losses, rel=tolerance)
    samples = [[record["sample_digest"] for record in read_log(path)] for path in (run_dir, undisturbed / "run")]
    assert samples[0] == samples[1]
    assert json.loads((run_dir / "checkpoints" / "step-00000006" / "manifest.json").read_text())["world_size"] == ranks


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [(None, 10.0, False), (2.0, 1.0, False), (2.0, 2.3, False), (9.0, 10.5, False), (2.0, 10.4, True)],
)
def test_a_loss_far_above_the_last_one_is_told_with_both_numbers(
    before: float | None, after: float, told: bool
) -> None:
    warning = jump_after_resume(before, after)
    assert (warning is not None) == told
    if warning is not None:
        assert "10.4000" in warning and "2.0000" in warning
