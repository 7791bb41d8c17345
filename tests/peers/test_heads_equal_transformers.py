"""Heads give the logits of stock transformers with the same weights."""

from typing import Any

import pytest
import torch

from deberta_scale.model.heads import FineTuningModel, MultipleChoiceModel, SequenceModel, SpanModel, TokenModel
from tests.rows import batch_of, small_model_config

transformers = pytest.importorskip("transformers", reason="the peers extra is not installed")

CONFIG = small_model_config(conv_kernel_size=3)
BATCH = batch_of([[17], [11]], 17, [[], []])
IS_TEXT = BATCH.segment_ids


def stock(name: str, ours: FineTuningModel, **settings: Any) -> Any:
    from deberta_scale.convert.hub_config import hub_config

    config = transformers.DebertaV2Config(**hub_config(CONFIG) | settings)
    model = getattr(transformers, name)(config).eval()
    loaded = model.load_state_dict(ours.state_dict(), strict=False)
    assert loaded.unexpected_keys == ["deberta.embeddings.position_embeddings.weight"] and not loaded.missing_keys
    return model


def randomised(model: FineTuningModel) -> Any:
    torch.manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("num_labels", [1, 3])
@torch.no_grad()
def test_sequence_logits(num_labels: int) -> None:
    ours = randomised(SequenceModel(CONFIG, num_labels, head_dropout=0.1))
    peer = stock("DebertaV2ForSequenceClassification", ours, num_labels=num_labels)
    expected = peer(input_ids=BATCH.token_ids, attention_mask=IS_TEXT).logits
    torch.testing.assert_close(ours(BATCH.token_ids, IS_TEXT), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_span_logits() -> None:
    ours = randomised(SpanModel(CONFIG))
    peer = stock("DebertaV2ForQuestionAnswering", ours)(input_ids=BATCH.token_ids, attention_mask=IS_TEXT)
    real = IS_TEXT.bool()
    for found, expected in zip(ours(BATCH.token_ids, IS_TEXT), (peer.start_logits, peer.end_logits), strict=True):
        torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)
        assert (found.softmax(-1)[~real] == 0).all(), "an answer never begins or ends in padding"


@torch.no_grad()
def test_multiple_choice_logits() -> None:
    ours = randomised(MultipleChoiceModel(CONFIG, head_dropout=0.1))
    peer = stock("DebertaV2ForMultipleChoice", ours)
    token_ids, is_text = BATCH.token_ids[None], IS_TEXT[None]
    expected = peer(input_ids=token_ids, attention_mask=is_text).logits
    torch.testing.assert_close(ours(token_ids, is_text), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_token_logits_are_the_official_formula() -> None:
    ours = randomised(TokenModel(CONFIG, 5, head_dropout=0.1))
    hidden = ours.hidden(BATCH.token_ids, IS_TEXT)
    expected = ours.classifier(torch.nn.functional.gelu(ours.proj(hidden)))
    found = ours(BATCH.token_ids, IS_TEXT)
    assert found.shape == (2, 17, 5)
    torch.testing.assert_close(found, expected)


def test_every_weight_of_a_head_learns_and_the_unused_position_table_does_not() -> None:
    for model in (SequenceModel(CONFIG, 3, 0.1), TokenModel(CONFIG, 3, 0.1), SpanModel(CONFIG)):
        output = model(BATCH.token_ids, IS_TEXT)
        logits = output if isinstance(output, torch.Tensor) else torch.stack(output, -1)
        (logits * torch.randn_like(logits))[:, :5].sum().backward()
        without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert without == ["deberta.embeddings.position_embeddings.weight"]
