"""Rows longer than the range of relative distances: clamped as the official code does, which transformers does not.

Released tables never train row 0: distances are clamped to +-(max_relative_positions - 1), the smallest of which is
row 1. transformers reads row 0 for every distance beyond the range.
"""

from typing import Any

import pytest
import torch

from deberta_scale.config import ModelConfig
from deberta_scale.convert.hub_config import hub_config
from deberta_scale.model.encoder import Deberta
from deberta_scale.model.pretraining import PretrainingModel
from tests.rows import batch_of, small_model_config

transformers = pytest.importorskip("transformers", reason="the peers extra is not installed")

RANGE, LENGTH = 16, 60
CONFIG = small_model_config(max_relative_positions=RANGE, position_buckets=8)
BATCH = batch_of([[LENGTH]], LENGTH, [[2, LENGTH - 2]])


def hidden_of_both(config: ModelConfig, length: int, row_zero_as_row_one: bool) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    ours: Any = Deberta(config).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    stock = transformers.DebertaV2Model(transformers.DebertaV2Config(**hub_config(config))).eval()
    stock.load_state_dict(ours.state_dict(), strict=False)
    token_ids = BATCH.token_ids[:, :length]
    with torch.no_grad():
        if row_zero_as_row_one:
            stock.encoder.rel_embeddings.weight[0] = stock.encoder.rel_embeddings.weight[1]
        found = ours(token_ids, torch.ones_like(token_ids), torch.arange(length)[None]).hidden
        return found, stock(input_ids=token_ids).last_hidden_state


def test_within_the_range_transformers_agrees() -> None:
    ours, stock = hidden_of_both(CONFIG, RANGE, row_zero_as_row_one=False)
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)


def test_beyond_it_transformers_reads_an_untrained_row_and_agrees_once_that_row_is_the_last_trained_one() -> None:
    ours, stock = hidden_of_both(CONFIG, LENGTH, row_zero_as_row_one=False)
    assert (ours - stock).abs().max() > 0.005
    ours, mended = hidden_of_both(CONFIG, LENGTH, row_zero_as_row_one=True)
    torch.testing.assert_close(ours, mended, rtol=1e-5, atol=1e-5)


def test_linear_distances_agree_at_any_length() -> None:
    linear = small_model_config(
        max_relative_positions=RANGE, position_buckets=0, share_att_key=False, norm_rel_ebd="none"
    )
    ours, stock = hidden_of_both(linear, LENGTH, row_zero_as_row_one=False)
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)


def test_long_rows_train_and_leave_row_zero_alone() -> None:
    torch.manual_seed(0)
    model = PretrainingModel(CONFIG)
    loss_sum, _, _ = model(BATCH)
    loss_sum.backward()
    gradient = model.deberta.encoder.rel_embeddings.weight.grad
    assert gradient is not None and not gradient[0].any() and gradient[1].any()
