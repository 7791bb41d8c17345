"""compat official: the numbers of the released algorithm, step by step as it is described, on a classifier.

The transcription takes the random start as given, since random numbers are the reader's own.
"""

import pytest
import torch
from torch.nn.functional import layer_norm, log_softmax

from deberta_scale.config_sift import SiftConfig
from deberta_scale.finetune.sift import Sift
from deberta_scale.finetune.sift_passes import PerturbedPass
from deberta_scale.model.heads import SequenceModel
from tests.rows import batch_of, small_model_config

BATCH = batch_of([[17], [11], [6]], 17, [[], [], []])
ROWS = (BATCH.token_ids, BATCH.segment_ids)
OFFICIAL = SiftConfig(weight=5.0, step_size=1e-4, initial_noise=1e-2, compat="official")


def classifier() -> SequenceModel:
    torch.manual_seed(3)
    return SequenceModel(small_model_config(), 3, head_dropout=0.0)


def cross_entropies(logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    log_q, log_p = log_softmax(logits, -1), log_softmax(other, -1)
    return -(log_p.exp().detach() * log_q).sum(-1) - (log_q.exp().detach() * log_p).sum(-1)


def released(model: SequenceModel, start: torch.Tensor, step_size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits of the clean pass, loss of the adversarial one) after one step of the released algorithm."""
    delta = torch.zeros(())
    norm = model.deberta.embeddings.LayerNorm
    hook = norm.register_forward_pre_hook(lambda _, x: layer_norm(x[0], x[0].shape[-1:], eps=1e-7) + delta)
    clean = model(*ROWS)
    delta = start.clone().requires_grad_()
    cross_entropies(model(*ROWS), clean.detach()).sum().backward(inputs=[delta])
    gradient = delta.grad
    delta = start + step_size * gradient / (gradient.abs().max(-1, keepdim=True).values + 1e-6)
    loss = cross_entropies(model(*ROWS), clean).mean()
    hook.remove()
    return clean, 5.0 * loss


@pytest.mark.parametrize(("initial_noise", "step_size"), [(1e-2, 1e-4), (0.1, 0.2)])
def test_the_loss_its_gradients_and_the_clean_output_are_the_released_ones(
    initial_noise: float, step_size: float
) -> None:
    config = SiftConfig(weight=5.0, step_size=step_size, initial_noise=initial_noise, compat="official")
    model = classifier()
    torch.manual_seed(11)
    sifted = Sift(model, config, "classification")(lambda: model(*ROWS))
    torch.manual_seed(11)
    start = PerturbedPass(config, int(torch.randint(2**62, ()))).start(torch.zeros(3, 17, 32))
    clean, expected = released(model, start, step_size)
    torch.testing.assert_close(sifted.penalty, expected, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(sifted.outputs, clean, rtol=1e-6, atol=1e-6)
    found_gradients, wanted_gradients = gradients(sifted.penalty, model), gradients(expected, model)
    largest = max(gradient.norm() for gradient in wanted_gradients)
    for found, wanted in zip(found_gradients, wanted_gradients, strict=True):
        assert (found - wanted).norm() <= 5e-3 * largest, "differences of two close outputs have few digits"


def gradients(loss: torch.Tensor, model: SequenceModel) -> list[torch.Tensor]:
    return [g for g in torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) if g is not None]


def test_the_step_is_one_hundredth_of_the_start_as_released() -> None:
    """A recipe's step of 1e-4 on noise of 1e-2; the addend of 1e-6 shortens it where the gradient is small."""
    model, seen = classifier(), []
    sift = Sift(model, OFFICIAL, "classification")

    def forward() -> torch.Tensor:
        handle = sift.modules["deberta.embeddings.LayerNorm"].register_forward_pre_hook(
            lambda _, given: seen.append(given[0].detach().double())
        )
        logits: torch.Tensor = model(*ROWS)
        handle.remove()
        return logits

    sift(forward)
    clean, start, last = seen
    assert 0.0199 < (start - clean).abs().max() < 0.02001, "clamped to twice the standard deviation"
    moved = (last - start).abs().amax(-1)[ROWS[1] > 0]
    assert moved.min() > 0.5e-4 and moved.max() < 1.01e-4


def test_dropout_is_other_in_every_pass_and_equal_outputs_have_a_loss() -> None:
    torch.manual_seed(3)
    model = SequenceModel(small_model_config(hidden_dropout_prob=0.3), 3, head_dropout=0.0)
    outputs = []

    def forward() -> torch.Tensor:
        outputs.append(model(*ROWS))
        return outputs[-1]

    tiny = OFFICIAL.model_copy(update={"step_size": 1e-30, "initial_noise": 1e-30, "weight": 1.0})
    sifted = Sift(model, tiny, "classification")(forward)
    first, second, third = outputs
    assert not torch.equal(first, second) and not torch.equal(second, third)
    calm = SequenceModel(small_model_config(hidden_dropout_prob=0.0), 3, head_dropout=0.0)
    calm.load_state_dict(model.state_dict())
    sifted = Sift(calm, tiny, "classification")(lambda: calm(*ROWS))
    entropy = torch.distributions.Categorical(logits=sifted.outputs).entropy()
    torch.testing.assert_close(sifted.penalty, 2 * entropy.mean())
