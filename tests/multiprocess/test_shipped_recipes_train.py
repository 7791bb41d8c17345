"""Every shipped recipe takes real steps, shrunk to what a test can hold."""

import json
from pathlib import Path

import pytest

from deberta_scale.config_file import load
from deberta_scale.train.engine import disk_offload_is_possible
from tests.launching import PRETRAIN, ROOT, read_log, start

SMALLER = [
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "model.vocab_size=640",
    "data.sequence_length=64",
    "batch.sequences=8",
    "batch.micro_sequences=2",
    "schedule.warmup_steps=1",
    "train.steps=2",
    "train.log_every_steps=1",
    "train.evaluate_sequences=8",
    "init_from=null",  # what the sources of continued runs become is in test_init_from.py
]


def data_options(path: Path, shards: Path) -> list[str]:
    """The test's shards for each of the recipe's sources, and the recipe's phases from the second step on."""
    mixture = load(path).data.mixture
    if mixture is None:
        return [f"data.shards={shards}"]
    phases = [{"from_step": 1 + number, "weights": phase.weights} for number, phase in enumerate(mixture.phases)]
    of_sources = [f"data.mixture.sources.{name}.shards={shards}" for name in mixture.sources]
    return [*of_sources, f"data.mixture.phases={json.dumps(phases)}"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "pretrain").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_trains_evaluates_and_saves(path: Path, prepared_shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = [f"run_dir={run_dir}", *data_options(path, prepared_shards), *SMALLER]
    if load(path).schedule.name == "wsd":
        options.append("schedule.decay_steps=1")
    if load(path).engine.offload_directory is not None:
        if not disk_offload_is_possible():
            pytest.skip("libaio-dev is not installed")
        options.append(f"engine.offload_directory={tmp_path / 'offloaded'}")
    codes, outputs = start(2, PRETRAIN, path, *options).wait()
    assert codes == [0, 0], outputs[0][-3000:]
    assert [record["step"] for record in read_log(run_dir)] == [1, 2]
    assert (run_dir / "checkpoints" / "step-00000002" / "COMPLETE").exists()
