"""What adversarial training does to a model, its random numbers and its gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deberta_scale.config_sift import SiftConfig
from deberta_scale.finetune.sift import Sift, SiftedModel
from deberta_scale.finetune.sift_passes import PerturbedPass, hooked
from deberta_scale.model.heads import MultipleChoiceModel, SequenceModel, SpanModel, TokenModel
from tests.rows import batch_of, small_model_config

BATCH = batch_of([[17], [11], [6]], 17, [[], [], []])
ROWS = (BATCH.token_ids, BATCH.segment_ids)
PLAIN = SiftConfig(weight=1.0, initial_noise=0.05, step_size=0.1)
UNNOTICEABLE = SiftConfig(weight=1.0, initial_noise=1e-30, step_size=1e-30)
"""Too small to change a bit of any embedding."""


def classifier(dropout: float = 0.0, **changes: Any) -> SequenceModel:
    torch.manual_seed(3)
    config = small_model_config(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **changes)
    return SequenceModel(config, 3, head_dropout=dropout)


def penalty(model: nn.Module, config: SiftConfig, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return SiftedModel(model, config, "classification")(*ROWS).penalty


def recorded(sift: Sift, model: nn.Module, seed: int = 0) -> list[list[torch.Tensor]]:
    """The inputs of a LayerNorm at the embeddings in each pass, after what SiFT did to them."""
    inputs: list[list[torch.Tensor]] = []

    def passes() -> Any:
        inputs.append([])
        handles = [
            module.register_forward_pre_hook(lambda _, given: inputs[-1].append(given[0].detach()))
            for module in sift.modules.values()
        ]
        outputs = model(*ROWS)
        for handle in handles:
            handle.remove()
        return outputs

    torch.manual_seed(seed)
    sift(passes)
    return inputs


def test_the_clean_pass_is_the_model_s_own_and_is_all_there_is_in_evaluation() -> None:
    model = classifier()
    expected = model(*ROWS)
    sifted = SiftedModel(model, PLAIN, "classification")
    assert torch.equal(sifted(*ROWS).outputs, expected)
    assert sifted(*ROWS).penalty > 0
    evaluated = sifted.eval()(*ROWS)
    assert torch.equal(evaluated.outputs, expected) and evaluated.penalty == 0 and evaluated.num_compared == 0


@pytest.mark.parametrize("ball", [{}, {"ball": "l2", "radius": 0.3}])
def test_the_scale_of_the_embedding_table_changes_nothing(ball: dict[str, Any]) -> None:
    config = SiftConfig(weight=1.0, initial_noise=0.05, step_size=0.1, **ball)
    model = classifier()
    expected = penalty(model, config)
    with torch.no_grad():
        model.deberta.embeddings.word_embeddings.weight *= 40.0
    torch.testing.assert_close(penalty(model, config), expected, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(
    "options", [{}, {"ball": "inf", "radius": 0.1}, {"ball": "l2", "radius": 0.5, "step_size": 0.5}]
)
def test_the_step_goes_where_the_output_changes_most(options: dict[str, Any]) -> None:
    """Against noise of the same length for each token, on average over seeds."""
    model = classifier()
    config = PLAIN.model_copy(update={"initial_noise": 0.01, **options})
    adversarial, random = 0.0, 0.0
    for seed in range(4):
        adversarial += penalty(model, config, seed).item()
        clean, _, last = (inputs[0] for inputs in recorded(Sift(model, config, "classification"), model, seed))
        lengths = (last - clean).norm(dim=-1, keepdim=True)
        noise = torch.nn.functional.normalize(torch.randn(clean.shape), dim=-1) * lengths
        handle = model.deberta.embeddings.LayerNorm.register_forward_pre_hook(lambda _, given, n=noise: (given[0] + n,))
        p = model(*ROWS).log_softmax(-1)
        handle.remove()
        c = model(*ROWS).log_softmax(-1)
        random += float(((c.exp() - p.exp()) * (c - p)).sum(-1).mean().detach())
    assert adversarial > 2.0 * random


def test_more_steps_find_a_worse_perturbation_in_the_same_ball() -> None:
    model = classifier()
    one, four = (SiftConfig(weight=1.0, ball="l2", radius=0.5, step_size=0.3, ascent_steps=steps) for steps in (1, 4))
    assert sum((penalty(model, four, seed) - penalty(model, one, seed)).item() for seed in range(4)) > 0


@pytest.mark.parametrize(("ball", "order"), [("inf", float("inf")), ("l2", 2)])
def test_no_token_leaves_the_ball(ball: Any, order: float) -> None:
    config = SiftConfig(weight=1.0, ball=ball, radius=0.02, step_size=1.0, initial_noise=1.0)
    model = classifier()
    clean, start, last = (inputs[0] for inputs in recorded(Sift(model, config, "classification"), model))
    deviation = clean.std(-1, correction=0, keepdim=True)
    for perturbed in (start, last):
        lengths = torch.linalg.vector_norm((perturbed - clean) / deviation, order, dim=-1)
        assert lengths.max() <= 0.02 * 1.01 and lengths.max() > 0.019


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_all_passes_drop_the_same_and_what_follows_is_as_without_them(checkpoint_activations: bool) -> None:
    torch.manual_seed(3)
    config = small_model_config(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    model = SequenceModel(config, 3, 0.1, checkpoint_activations)
    assert penalty(model, UNNOTICEABLE) == 0
    after_passes = torch.rand(())
    torch.manual_seed(0)
    torch.randint(2**62, ())  # the seed of the noise
    model(*ROWS)
    assert after_passes == torch.rand(())
    other_dropout = UNNOTICEABLE.model_copy(update={"same_dropout": False})
    assert penalty(model, other_dropout) > 1e-4


def test_padding_is_free_to_be_perturbed_since_nothing_sees_it() -> None:
    model = classifier(conv_kernel_size=3)
    sift = Sift(model, PLAIN, "classification")
    delta = 0.1 * torch.randn(*BATCH.token_ids.shape, 32)
    elsewhere = torch.where(BATCH.segment_ids[..., None] > 0, delta, 100.0)
    outputs = []
    for given in (delta, elsewhere):
        with hooked(sift.modules, PerturbedPass(PLAIN, 0, [given])):
            outputs.append(model(*ROWS))
    assert torch.equal(*outputs)


class TwoEncoders(nn.Module):
    """Question and answer read by encoders of their own, of other widths; one is called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.left = SequenceModel(small_model_config(), 3, 0.0)
        self.right = SequenceModel(small_model_config(hidden_size=16), 3, 0.0)

    def forward(self, token_ids: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
        answer = self.right(token_ids[:, :9], segment_ids[:, :9])
        return self.left(token_ids, segment_ids) + answer - self.left(token_ids.flip(0), segment_ids.flip(0))


def test_each_call_of_each_module_keeps_a_perturbation_of_its_own() -> None:
    model = TwoEncoders()
    sift = Sift(model, PLAIN, "classification")
    assert list(sift.modules) == ["left.deberta.embeddings.LayerNorm", "right.deberta.embeddings.LayerNorm"]
    clean, start, last = recorded(sift, model)
    assert [tuple(tensor.shape) for tensor in clean] == [(3, 9, 16), (3, 17, 32), (3, 17, 32)]
    added = [
        [(p - c) / c.std(-1, correction=0, keepdim=True) for p, c in zip(pass_, clean, strict=True)]
        for pass_ in (start, last)
    ]
    steps = [(second - first).abs().amax(-1) for first, second in zip(*added, strict=True)]
    for step, is_text in zip(steps, (ROWS[1][:, :9], ROWS[1], ROWS[1].flip(0)), strict=True):
        torch.testing.assert_close(step, 0.1 * is_text, rtol=1e-3, atol=1e-4)
    first, second = added[0][1:]
    assert (first - second)[ROWS[1] > 0].abs().max() > 0.05, "the second call has other noise than the first"


def test_weights_get_their_gradient_from_the_last_pass_and_none_from_the_search() -> None:
    """The gradient of the penalty is that of the formula with the perturbation taken as given."""
    model = classifier()
    sift = Sift(model, PLAIN, "classification")
    clean, _, last = (inputs[0] for inputs in recorded(sift, model))
    delta = (last - clean) / (clean.var(-1, correction=0, keepdim=True) + 1e-7).sqrt()
    with hooked(sift.modules, PerturbedPass(PLAIN, 0, [delta])):
        p = model(*ROWS).log_softmax(-1)
    c = model(*ROWS).log_softmax(-1)
    expected = torch.autograd.grad(
        ((c.exp() - p.exp()) * (c - p)).sum(-1).mean(), list(model.parameters()), allow_unused=True
    )
    counts = {name: 0 for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, n=name: counts.update({n: counts[n] + 1}))
    torch.manual_seed(0)
    sifted = sift(lambda: model(*ROWS))
    assert not any(counts.values())
    sifted.penalty.backward()
    assert set(counts.values()) == {0, 1}
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-2, atol=1e-5)


def test_the_passes_cost_what_is_documented() -> None:
    """Matrix products of forward (1) and backward (2): twice all of it, and a search without gradients of weights."""
    model = classifier()
    sifted = SiftedModel(model, PLAIN, "classification")

    def count(step: Callable[[], torch.Tensor]) -> int:
        with FlopCounterMode(display=False) as counter:
            step().backward()
        return counter.get_total_flops()

    plain = count(lambda: model(*ROWS).sum())
    assert count(lambda: sum(sifted(*ROWS)[:2]).sum()) == pytest.approx(plain * 8 / 3, rel=0.02)


def test_every_head_can_be_sifted() -> None:
    config = small_model_config()
    is_text = ROWS[1] > 0
    regression = SiftedModel(SequenceModel(config, 1, 0.0), PLAIN, "regression")(*ROWS)
    assert regression.penalty > 0 and regression.num_compared == 3
    spans = SiftedModel(SpanModel(config), PLAIN, "span")(*ROWS, counted=is_text)
    assert spans.penalty > 0 and spans.num_compared == 6
    labelled = is_text & (torch.arange(17) % 2 == 0)
    tokens = SiftedModel(TokenModel(config, 5, 0.0), PLAIN, "tokens")(*ROWS, counted=labelled)
    assert tokens.penalty > 0 and tokens.num_compared == labelled.sum()
    choice = SiftedModel(MultipleChoiceModel(config, 0.0), PLAIN, "choice")(ROWS[0][None], ROWS[1][None])
    assert choice.penalty > 0 and choice.num_compared == 1
    nothing = SiftedModel(TokenModel(config, 5, 0.0), PLAIN, "tokens")(*ROWS, counted=torch.zeros_like(is_text))
    assert nothing.penalty == 0 and nothing.num_compared == 0


@pytest.mark.parametrize("steps", [1, 3])
def test_a_gradient_that_is_not_finite_leaves_the_random_start_and_is_told(
    steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = classifier()
    sift = Sift(model, PLAIN.model_copy(update={"ascent_steps": steps}), "classification")
    model.deberta.embeddings.LayerNorm.register_forward_hook(
        lambda _, given, output: output.register_hook(lambda gradient: gradient * torch.inf) and None
    )
    passes = recorded(sift, model)
    assert len(passes) == 2 + steps, "all ranks make all passes"
    assert torch.equal(passes[1][0], passes[-1][0]) and not torch.equal(passes[0][0], passes[1][0])
    assert sift.num_fallbacks == steps
    assert f"not finite, so it stays where it was; {steps} time(s) so far" in caplog.text


def test_a_tiny_inner_loss_has_a_direction_in_half_precision() -> None:
    """Its gradient would be zero in fp16, were it not brought to size before it goes back through the model."""
    model = classifier().half()
    config = PLAIN.model_copy(update={"initial_noise": 2e-3})
    with torch.no_grad():
        model.classifier.weight *= 1e-3
    clean, start, last = (inputs[0].float() for inputs in recorded(Sift(model, config, "classification"), model))
    moved = ((last - start) / clean.std(-1, correction=0, keepdim=True)).abs().amax(-1)[ROWS[1] > 0]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=0.05, atol=0.0)


def test_what_cannot_be_perturbed_is_refused_with_what_could() -> None:
    model = classifier()
    with pytest.raises(
        ValueError, match=r"no module whose name ends in norm_in; .*deberta\.embeddings\.word_embeddings"
    ):
        Sift(model, SiftConfig(weight=1.0, modules=("norm_in",)), "classification")
    with pytest.raises(ValueError, match=r"Sequential has no module .*embeddings\.LayerNorm or word_embedding"):
        Sift(nn.Sequential(nn.Linear(2, 2)), PLAIN, "classification")
    sift = Sift(model, PLAIN, "classification")
    with pytest.raises(ValueError, match=r"called none of deberta\.embeddings\.LayerNorm"):
        sift(lambda: torch.zeros(3, 3))
    with pytest.raises(ValueError, match="outputs have no gradient"):
        sift(lambda: model(*ROWS).detach())
    model.deberta.embeddings.LayerNorm._is_replica = True  # as nn.DataParallel marks its copies
    with pytest.raises(ValueError, match="one process per GPU"):
        sift(lambda: model(*ROWS))
    assert not model.deberta.embeddings.LayerNorm._forward_pre_hooks, "hooks are gone also after an error"
