"""Encoder, mask decoder and head: what a row means, and that the fast way equals the obvious one."""

import dataclasses

import pytest
import torch

from deberta_scale.batch import MaskedBatch
from deberta_scale.config import ModelConfig
from deberta_scale.model.encoder import SegmentConv1d
from deberta_scale.model.pretraining import PretrainingModel
from deberta_scale.model.sizes import parameter_count
from tests.rows import batch_of, small_model_config

STYLES = {
    "v3": {},
    "v2 with convolution": {"conv_kernel_size": 3},
    "v1": {"share_att_key": False, "position_buckets": 0, "norm_rel_ebd": "none"},
    "narrow words": {"embedding_size": 16},
    "wide heads": {"attention_head_size": 24},
    "c2p only": {"pos_att_type": ("c2p",)},
    "p2c only": {"pos_att_type": ("p2c",), "share_att_key": False},
}
BASELINE = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "baseline": True,
}


def build(style: str, **changes: object) -> PretrainingModel:
    torch.manual_seed(0)
    if style == "baseline":
        return PretrainingModel(ModelConfig(**BASELINE | changes))
    return PretrainingModel(small_model_config(**STYLES[style] | changes))


def gradients(model: PretrainingModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def decode_everywhere(model: PretrainingModel, batch: MaskedBatch) -> torch.Tensor:
    """Logits of the mask decoder as the official code gets them: ask at every place, select afterwards."""
    encoded = model.deberta(
        batch.token_ids,
        batch.segment_ids,
        batch.position_ids,
        num_layers=model.config.num_hidden_layers - 1,
    )
    layer = model.deberta.encoder.layer[-1]
    queries = encoded.hidden + model.deberta.embeddings.position_embeddings(batch.position_ids)
    for _ in range(2):
        queries = layer(queries, layer.keys(encoded.hidden, encoded.relative_table), encoded.view)
    selected = queries.flatten(0, 1)[batch.predict_positions]
    return model.lm_predictions["lm_head"].logits(selected, model.deberta.embeddings.word_embeddings.weight)


@pytest.mark.parametrize("style", STYLES)
def test_masked_queries_give_the_logits_and_gradients_of_decoding_every_place(style: str) -> None:
    """R12."""
    model = build(style)
    batch = batch_of([[9, 6], [12], [4, 4, 5]], 16, [[1, 4, 10], [], [0, 3, 6, 12]])
    outcomes = []
    for logits in (model.logits(batch), decode_everywhere(model, batch)):
        loss = torch.nn.functional.cross_entropy(logits, batch.predict_ids)
        outcomes.append((logits, gradients(model, loss)))
    (fast, fast_gradients), (slow, slow_gradients) = outcomes
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fast_gradients, slow_gradients, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("style", [*STYLES, "baseline"])
def test_a_packed_row_means_what_its_documents_mean_alone(style: str) -> None:
    model = build(style)
    packed = batch_of([[9, 6]], 18, [[1, 4, 10, 14]])
    apart = [
        dataclasses.replace(
            packed,
            **{name: getattr(packed, name)[:, start:end] for name in ("token_ids", "segment_ids", "position_ids")},
            predict_positions=torch.tensor(places),
        )
        for start, end, places in ((0, 9, [1, 4]), (9, 15, [1, 5]))
    ]
    alone = torch.cat([model.logits(batch) for batch in apart])
    torch.testing.assert_close(model.logits(packed), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("style", [*STYLES, "baseline"])
def test_forward_returns_the_sum_the_count_and_the_hits(style: str) -> None:
    model = build(style)
    batch = batch_of([[9, 6], [12]], 16, [[1, 4, 10], [0, 6]])
    logits = model.logits(batch)
    batch = dataclasses.replace(batch, predict_ids=torch.cat([logits.argmax(-1)[:2], batch.predict_ids[2:] * 0]))
    loss_sum, predicted, correct = model(batch)
    by_hand = -logits.log_softmax(-1)[torch.arange(5), batch.predict_ids].sum()
    torch.testing.assert_close(loss_sum, by_hand)
    assert predicted.item() == 5 and correct.item() == 2


@pytest.mark.parametrize("style", [*STYLES, "baseline"])
def test_rows_without_anything_to_predict_or_to_read_give_zero_and_no_gradient_that_is_not_finite(style: str) -> None:
    model = build(style)
    batch = batch_of([[], [5]], 8, [[], []])
    loss_sum, predicted, correct = model(batch)
    assert (loss_sum.item(), predicted.item(), correct.item()) == (0.0, 0, 0)
    assert all(gradient.isfinite().all() for gradient in gradients(model, loss_sum).values())


@pytest.mark.parametrize("style", [*STYLES, "baseline"])
def test_every_weight_learns_and_their_number_is_the_closed_form(style: str) -> None:
    model = build(style, norm_rel_ebd="layer_norm") if style == "v2 with convolution" else build(style)
    batch = batch_of([[9, 6], [12]], 16, [[1, 4, 10], [0, 6]])
    learned = gradients(model, model(batch)[0])
    unused = {name for name, _ in model.named_parameters() if name not in learned}
    assert not unused
    assert parameter_count(model.config).total == sum(p.numel() for p in model.parameters())


def test_padding_and_other_rows_change_nothing() -> None:
    model = build("v2 with convolution")
    narrow = batch_of([[9, 6]], 15, [[1, 10]])
    wide = batch_of([[9, 6], [3]], 20, [[1, 10], []])
    torch.testing.assert_close(model.logits(narrow), model.logits(wide), rtol=1e-5, atol=1e-5)


def test_the_decoder_knows_absolute_positions_and_the_encoder_does_not() -> None:
    model = build("v3")
    batch = batch_of([[12]], 12, [[3, 7]])
    with torch.no_grad():
        before = model.logits(batch)
        encoded = model.deberta(batch.token_ids, batch.segment_ids, batch.position_ids).hidden
        model.deberta.embeddings.position_embeddings.weight[7] += 1.0
        after = model.logits(batch)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])
    assert torch.equal(encoded, model.deberta(batch.token_ids, batch.segment_ids, batch.position_ids).hidden)


def test_convolution_inside_one_document_is_the_plain_one() -> None:
    torch.manual_seed(0)
    convolution = SegmentConv1d(8, 8, 3)
    hidden, segments = torch.randn(2, 10, 8), torch.ones(2, 10, dtype=torch.long)
    plain = torch.nn.functional.conv1d(hidden.mT, convolution.weight, convolution.bias, padding=1).mT
    torch.testing.assert_close(convolution(hidden, segments), plain)


@pytest.mark.parametrize("style", ["v3", "v2 with convolution", "baseline"])
def test_recomputing_activations_changes_no_bit_even_with_dropout(style: str) -> None:
    batch = batch_of([[9, 6], [12]], 16, [[1, 4, 10], [0, 6]])
    results = []
    for checkpointed in (False, True):
        model = build(style, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
        model.deberta.encoder.checkpoint_activations = checkpointed
        torch.manual_seed(5)
        loss_sum, _, _ = model(batch)
        results.append((loss_sum, gradients(model, loss_sum)))
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        assert torch.equal(gradient, results[1][1][name]), name
