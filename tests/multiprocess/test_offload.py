"""Where an optimizer lies, and how many copies of parameters there are, changes memory and traffic, not what is
learned."""

import json
from pathlib import Path

import pytest

from deberta_scale.train.engine import disk_offload_is_possible
from tests.launching import PRETRAIN, read_log, start

SIZES = ["model.vocab_size=4000", "model.hidden_size=256", "model.intermediate_size=1024", "model.num_hidden_layers=6"]
"""Large enough that matrices go to the disk: tensors under 1 MiB stay in memory."""


def losses(config_path: Path, run_dir: Path, *options: str) -> list[float]:
    """Of six steps, the last two after a start from the checkpoint of the fourth."""
    common = [*SIZES, "optimizer.learning_rate=1e-3", "engine.precision=bf16"]
    for steps in (4, 6):
        words = [f"run_dir={run_dir}", f"train.steps={steps}", *common, *options]
        codes, outputs = start(2, PRETRAIN, config_path, *words).wait(600)
        assert codes == [0, 0], outputs[0][-3000:]
    return [record["loss"] for record in read_log(run_dir)]


def test_an_optimizer_on_disk_learns_what_one_in_memory_does(config_path: Path, tmp_path: Path) -> None:
    if not disk_offload_is_possible():
        pytest.skip("libaio-dev is not installed")
    in_memory = losses(config_path, tmp_path / "memory", "engine.offload_optimizer=cpu")
    directory = f"engine.offload_directory={tmp_path / 'offloaded'}"
    on_disk = losses(config_path, tmp_path / "disk", "engine.offload_optimizer=disk", directory)
    events = [json.loads(line) for line in (tmp_path / "disk" / "events.jsonl").read_text().splitlines()]
    saves = [event["waited_for_write"] for event in events if event["event"] == "saved"]
    assert saves == ["a part of the state lies on disk"] * 2
    assert len(on_disk) == 6 and on_disk[-1] < on_disk[0] - 0.3
    assert on_disk == pytest.approx(in_memory, rel=1e-3)


def test_a_second_copy_inside_groups_of_ranks_changes_nothing(config_path: Path, tmp_path: Path) -> None:
    found = []
    for size in (1, 2):
        run_dir = tmp_path / f"copies-{size}"
        options = [f"run_dir={run_dir}", "train.steps=3", "engine.precision=bf16", f"engine.hpz_partition_size={size}"]
        codes, outputs = start(4, PRETRAIN, config_path, *options).wait()
        assert codes == [0] * 4, outputs[0][-3000:]
        found.append([record["loss"] for record in read_log(run_dir)])
    assert found[0] == found[1]
