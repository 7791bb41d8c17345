"""Models of tasks train and answer the same however a real engine spreads them, also where a rank has no rows left."""

from pathlib import Path

import numpy as np
import pytest

from tests.launching import run_worker

WORKER = Path(__file__).with_name("task_model_worker.py")
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
  conv_kernel_size: 3
  initializer_range: 0.1
data: {shards: none, sequence_length: 64}
batch: {sequences: 4, micro_sequences: 2}
optimizer: {learning_rate: 1e-2}
engine: {zero_stage: 0, precision: fp32}
train: {steps: 3}
"""


@pytest.mark.parametrize("head", ["tokens", "choice"])
def test_two_ranks_give_one_process_s_numbers(head: str, tmp_path: Path) -> None:
    """Five rows, two in a batch: at the end rank 0 has one, rank 1 none."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    arguments = (WORKER, tmp_path)
    (one,) = run_worker(*arguments, 1, head, tmp_path / "config.yaml", ["engine.zero_stage=0"])
    stages = [f"engine.zero_stage={stage}" for stage in (1, 3)]
    for two in run_worker(*arguments, 2, head, tmp_path / "config.yaml", *([stage] for stage in stages)):
        assert two["norms"] == pytest.approx(one["norms"], rel=1e-4)
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        for found, expected in zip(two["logits"], one["logits"], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert one["losses"][1] < one["losses"][0], "it was trained on these rows"
