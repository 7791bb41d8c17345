"""How far two outputs are apart: every kind and task against the formula written out."""

from collections.abc import Callable

import pytest
import torch

from deberta_scale.config_sift import Divergence, Head
from deberta_scale.finetune.sift_losses import check_counted, compare, divergence, logits_of_task, official_divergence

torch.manual_seed(0)
CLEAN, PERTURBED = torch.randn(4, 5), torch.randn(4, 5)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL of the distributions with these logits, summed place by place in double precision."""
    p, q = p.double().softmax(-1), q.double().softmax(-1)
    return (p * (p / q).log()).sum(-1).float()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("kl", kl(CLEAN, PERTURBED)),
        ("symmetric_kl", kl(CLEAN, PERTURBED) + kl(PERTURBED, CLEAN)),
        ("mse", (CLEAN - PERTURBED).pow(2).sum(-1) / 5),
    ],
)
def test_each_kind_is_its_formula_and_zero_for_equal_outputs(kind: Divergence, expected: torch.Tensor) -> None:
    torch.testing.assert_close(divergence(kind, PERTURBED, CLEAN), expected)
    assert divergence(kind, CLEAN, CLEAN).abs().max() == 0


@pytest.mark.parametrize("kind", ["kl", "symmetric_kl", "mse"])
def test_places_that_do_not_exist_change_nothing(kind: Divergence) -> None:
    places = torch.arange(8) < 5
    longer = [
        torch.cat([logits, filler], -1)
        for logits, filler in ((PERTURBED, torch.randn(4, 3)), (CLEAN, torch.zeros(4, 3)))
    ]
    expected = divergence(kind, PERTURBED, CLEAN)
    torch.testing.assert_close(divergence(kind, *longer, places.expand(4, 8)), expected)


@pytest.mark.parametrize("kind", ["kl", "symmetric_kl"])
@pytest.mark.parametrize("excluded", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_place_that_the_model_itself_excludes_has_no_divergence_and_a_finite_gradient(
    kind: Divergence, excluded: float
) -> None:
    longer = [torch.cat([logits, torch.full((4, 2), excluded)], -1) for logits in (PERTURBED, CLEAN)]
    longer[0].requires_grad_()
    found = divergence(kind, *longer)
    torch.testing.assert_close(found, divergence(kind, PERTURBED, CLEAN))
    (gradient,) = torch.autograd.grad(found.sum(), longer[0])
    assert gradient.isfinite().all() and gradient[:, :5].abs().min() > 0


def gradients(function: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    leaves = [logits.clone().requires_grad_() for logits in (PERTURBED, CLEAN)]
    loss = function(*leaves)
    found = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def test_kl_holds_the_clean_output_fixed_and_symmetric_kl_does_not() -> None:
    to_perturbed, to_clean = gradients(lambda p, c: divergence("kl", p, c))
    torch.testing.assert_close(to_perturbed, PERTURBED.softmax(-1) - CLEAN.softmax(-1))
    assert to_clean.abs().max() == 0
    to_perturbed, to_clean = gradients(lambda p, c: divergence("symmetric_kl", p, c))
    assert to_clean.abs().min() > 0
    step = 1e-3 * torch.eye(5)[0]
    slope = (
        divergence("symmetric_kl", PERTURBED, CLEAN + step) - divergence("symmetric_kl", PERTURBED, CLEAN - step)
    ) / 2e-3
    torch.testing.assert_close(to_clean[:, 0], slope, rtol=1e-2, atol=1e-3)


def test_the_official_loss_is_cross_entropy_both_ways_whose_weights_get_no_gradient() -> None:
    p, c = PERTURBED.softmax(-1), CLEAN.softmax(-1)
    torch.testing.assert_close(official_divergence(PERTURBED, CLEAN), -(c * p.log()).sum(-1) - (p * c.log()).sum(-1))
    to_perturbed, to_clean = gradients(official_divergence)
    torch.testing.assert_close(to_perturbed, p - c)
    torch.testing.assert_close(to_clean, c - p)


def test_only_labelled_tokens_count() -> None:
    clean, perturbed = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    labelled = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0]]).bool()
    apart = compare("tokens", "symmetric_kl", [perturbed], [clean], labelled)
    expected = kl(clean, perturbed) + kl(perturbed, clean)
    torch.testing.assert_close(apart.total, expected[0, 0] + expected[0, 1] + expected[1, 1])
    assert apart.num_compared == 3


def test_spans_are_two_distributions_over_the_places_that_exist() -> None:
    clean, perturbed = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    exist = torch.arange(6) < torch.tensor([[4], [6], [5]])
    apart = compare("span", "kl", list(perturbed), list(clean), exist)
    expected = sum(
        kl(clean[which, row, :size], perturbed[which, row, :size])
        for which in (0, 1)
        for row, size in enumerate((4, 6, 5))
    )
    torch.testing.assert_close(apart.total, torch.as_tensor(expected))
    assert apart.num_compared == 6


def test_choices_that_do_not_exist_are_left_out_and_rows_that_do_not_count_too() -> None:
    exist = torch.tensor([[1, 1, 1, 0, 0]] * 4).bool()
    apart = compare("choice", "kl", [PERTURBED], [CLEAN], exist)
    torch.testing.assert_close(apart.total, kl(CLEAN[:, :3], PERTURBED[:, :3]).sum())
    assert apart.num_compared == 4
    apart = compare("classification", "kl", [PERTURBED], [CLEAN], torch.tensor([1, 0, 0, 1]).bool())
    torch.testing.assert_close(apart.total, kl(CLEAN, PERTURBED)[[0, 3]].sum())
    assert apart.num_compared == 2


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_a_regression_compares_numbers(shape: tuple[int, ...]) -> None:
    clean, perturbed = torch.randn(shape), torch.randn(shape)
    both = [logits_of_task("regression", output) for output in (perturbed, clean)]
    apart = compare("regression", "mse", *both, counted=None)
    torch.testing.assert_close(apart.total, (clean - perturbed).pow(2).sum())
    assert apart.num_compared == 4


@pytest.mark.parametrize(
    ("task", "outputs", "words"),
    [
        ("classification", torch.zeros(4, 1), r"\[B, N\] with N of 2 or more; the model gave \[4, 1\]"),
        ("classification", {"logits": 1}, "not dict; say with `logits`"),
        ("regression", torch.zeros(4, 2), r"numbers \[B\] or \[B, 1\]; the model gave \[4, 2\]"),
        ("span", torch.zeros(4, 8), r"a pair of logits \[B, L\]"),
        ("tokens", torch.zeros(4, 8), r"\[B, L, N\]"),
    ],
)
def test_an_output_of_another_task_is_refused(task: Head, outputs: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        logits_of_task(task, outputs)


def test_what_counts_must_be_said_and_fit() -> None:
    tokens, spans = [torch.zeros(2, 4, 3)], [torch.zeros(2, 4)] * 2
    for task, logits in (("tokens", tokens), ("span", spans)):
        with pytest.raises(ValueError, match=f"SiFT of {task} needs `counted`"):
            check_counted(task, logits, None)
    with pytest.raises(ValueError, match=r"of shape \[2, 4\], bool; given: \[2, 4\], int64"):
        check_counted("tokens", tokens, torch.ones(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"given: \[2\], bool"):
        check_counted("choice", [torch.zeros(2, 4)], torch.ones(2).bool())
