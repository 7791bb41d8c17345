"""The encoder equals stock transformers with the same weights: hidden states and gradients at real places."""

from typing import Any

import pytest
import torch

from deberta_scale.config import ModelConfig
from deberta_scale.model.encoder import Deberta
from tests.rows import batch_of, small_model_config

transformers = pytest.importorskip("transformers", reason="the peers extra is not installed")

STYLES: dict[str, dict[str, Any]] = {
    "v3": {},
    "v2 with convolution": {"conv_kernel_size": 3},
    "v1 projections and distances": {"share_att_key": False, "position_buckets": 0, "norm_rel_ebd": "none"},
    "narrow words": {"embedding_size": 16},
    "c2p only": {"pos_att_type": ("c2p",)},
    "p2c only": {"pos_att_type": ("p2c",)},
}


def stock_model(config: ModelConfig) -> Any:
    return transformers.DebertaV2Model(
        transformers.DebertaV2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=0,
            relative_attention=True,
            position_biased_input=False,
            max_relative_positions=config.max_relative_positions,
            position_buckets=config.position_buckets or -1,
            pos_att_type=list(config.pos_att_type),
            share_att_key=config.share_att_key,
            norm_rel_ebd=config.norm_rel_ebd,
            embedding_size=config.word_embedding_size,
            conv_kernel_size=config.conv_kernel_size,
            conv_act=config.conv_act,
        )
    )


@pytest.mark.parametrize("style", STYLES)
def test_hidden_states_and_gradients_are_those_of_transformers(style: str) -> None:
    config = small_model_config(**STYLES[style])
    torch.manual_seed(0)
    ours, stock = Deberta(config), stock_model(config)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    missing = stock.load_state_dict(ours.state_dict(), strict=False)
    assert missing.unexpected_keys == ["embeddings.position_embeddings.weight"] and not missing.missing_keys

    batch = batch_of([[33], [20]], 33, [[], []])
    real = batch.segment_ids > 0
    weights = torch.randn(int(real.sum()), config.hidden_size)
    hidden = ours(batch.token_ids, batch.segment_ids, batch.position_ids).hidden[real]
    expected = stock(input_ids=batch.token_ids, attention_mask=real.long()).last_hidden_state[real]
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)

    (hidden * weights).sum().backward()
    (expected * weights).sum().backward()
    scales = {name: parameter.grad.abs().max().clamp(min=1.0) for name, parameter in stock.named_parameters()}
    gradients, expected_gradients = (
        {name: dict(model.named_parameters())[name].grad / scale for name, scale in scales.items()}
        for model in (ours, stock)
    )
    torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=1e-5)
