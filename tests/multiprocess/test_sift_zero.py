"""Adversarial training gives the same numbers however a real engine spreads its model, and in
DistributedDataParallel, dropout included."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.launching import start

WORKER = Path(__file__).with_name("sift_worker.py")
CONFIG = """
run_dir: runs/unused
model:
  vocab_size: 640
  hidden_size: 48
  num_hidden_layers: 2
  num_attention_heads: 2
  intermediate_size: 96
  max_position_embeddings: 64
  max_relative_positions: 64
  position_buckets: 32
  initializer_range: 0.1
data: {shards: none, sequence_length: 64}
batch: {sequences: 16, micro_sequences: 4}
optimizer: {learning_rate: 1e-2}
engine: {zero_stage: 0, precision: fp32}
train: {steps: 3}
"""
CHECKPOINTED = "zero_stage=3 engine.activation_checkpointing=non_reentrant"
EXACT = ["zero_stage=1", "zero_stage=2", "zero_stage=3", CHECKPOINTED]
ROUNDED = [
    f"zero_stage={stage} engine.precision={precision}" for stage, precision in ((1, "bf16"), (3, "bf16"), (3, "fp16"))
]


def run_worker(tmp_path: Path, world_size: int, task: str, groups: list[str]) -> Any:
    """What the task gives, by group."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    result = tmp_path / f"{world_size}.json"
    words = chain.from_iterable(["--", *f"engine.{group}".split()] for group in groups)
    codes, outputs = start(world_size, WORKER, task, result, tmp_path / "config.yaml", *words).wait()
    assert codes == [0] * world_size, outputs[0][-3000:]
    return dict(zip(groups, json.loads(result.read_text()), strict=True))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of one process without ZeRO: of each step the task's loss, the penalty and the norm of the gradient."""
    return run_worker(tmp_path_factory.mktemp("one"), 1, "train", ["zero_stage=0"])["zero_stage=0"]


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_worker(tmp_path_factory.mktemp("two"), 2, "train", [*EXACT, *ROUNDED])


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    for step, expected_step in zip(found, expected, strict=True):
        assert step == pytest.approx(expected_step, rel=tolerance)


@pytest.mark.parametrize("group", EXACT)
def test_stages_accumulation_and_checkpointing_give_one_process_s_numbers(
    group: str, expected: Any, on_two_ranks: Any
) -> None:
    assert all(penalty > 0.01 for _, penalty, _ in expected), "the penalty is part of what is compared"
    assert_close(on_two_ranks[group], expected, 1e-4)


@pytest.mark.parametrize("group", ROUNDED)
def test_16_bits_stay_near_and_find_a_perturbation_as_bad(group: str, expected: Any, on_two_ranks: Any) -> None:
    assert_close(on_two_ranks[group], expected, 0.05)


def test_distributed_data_parallel_may_be_called_for_every_pass(tmp_path: Path) -> None:
    (found,) = run_worker(tmp_path, 2, "data_parallel", ["precision=fp32"]).values()
    assert found["difference"] <= 1e-5 * found["largest"]
