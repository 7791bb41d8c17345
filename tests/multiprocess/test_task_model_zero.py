"""Models of tasks train and answer the same however a real engine spreads them, also where a rank has no rows left."""

from pathlib import Path

import numpy as np
import pytest

from tests.launching import run_worker

WORKER = Path(__file__).with_name("task_model_worker.py")
SMALL = ["model.initializer_range=0.1", "model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1"]
SMALL += ["model.conv_kernel_size=3", "batch.sequences=4", "batch.micro_sequences=2", "train.steps=3"]


@pytest.mark.parametrize("head", ["tokens", "choice"])
def test_two_ranks_give_one_process_s_numbers(head: str, config_path: Path, tmp_path: Path) -> None:
    """Five rows, two in a batch: at the end rank 0 has one, rank 1 none."""
    arguments = (WORKER, tmp_path)
    (one,) = run_worker(*arguments, 1, head, config_path, [*SMALL, "engine.zero_stage=0"])
    stages = [f"engine.zero_stage={stage}" for stage in (1, 3)]
    for two in run_worker(*arguments, 2, head, config_path, *([*SMALL, stage] for stage in stages)):
        assert two["norms"] == pytest.approx(one["norms"], rel=1e-4)
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        for found, expected in zip(two["logits"], one["logits"], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert one["losses"][1] < one["losses"][0], "it was trained on these rows"
