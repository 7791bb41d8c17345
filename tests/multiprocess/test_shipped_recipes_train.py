"""Every shipped recipe takes real steps, shrunk to what a test can hold."""

from pathlib import Path

import pytest

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


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "pretrain").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_trains_evaluates_and_saves(path: Path, prepared_shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = [f"run_dir={run_dir}", f"data.shards={prepared_shards}", *SMALLER]
    codes, outputs = start(2, PRETRAIN, path, *options).wait()
    assert codes == [0, 0], outputs[0][-3000:]
    assert [record["step"] for record in read_log(run_dir)] == [1, 2]
    assert (run_dir / "checkpoints" / "step-00000002" / "COMPLETE").exists()
