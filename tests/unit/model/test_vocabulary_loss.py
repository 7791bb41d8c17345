"""The loss in ranges of the vocabulary is the loss of all logits, values and gradients, and its memory has a bound."""

from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deberta_scale.model import sizes
from deberta_scale.model.vocabulary_loss import VocabularyLoss, in_ranges, whole

WIDTH = 24
SIZES = [(7, 101, 10), (7, 100, 25), (1, 50, 64), (0, 9, 2)]
Loss = Callable[..., VocabularyLoss]


def operands(num_predicted: int, vocabulary: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(num_predicted + vocabulary)
    shapes = ((num_predicted, WIDTH), (vocabulary, WIDTH), (vocabulary,))
    made = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    return (*made, torch.randint(0, vocabulary, (num_predicted,), generator=generator))


def values_and_gradients(loss: Loss, made: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    loss_sum, correct = loss(*made)
    return (loss_sum.detach(), correct, *torch.autograd.grad(0.25 * loss_sum, made[:3]))


@pytest.mark.parametrize("keeps", [True, False], ids=["logits are kept", "logits are computed twice"])
@pytest.mark.parametrize(("num_predicted", "vocabulary", "pieces"), SIZES)
def test_ranges_give_the_loss_and_the_gradients_of_the_whole(
    num_predicted: int, vocabulary: int, pieces: int, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "WORKING_LOGITS_BYTES", sizes.BYTES_PER_WORKING_LOGIT * max(1, num_predicted) * pieces)
    if not keeps:
        monkeypatch.setattr(sizes, "KEPT_LOGITS_BYTES", 0)
    made = operands(num_predicted, vocabulary, torch.float32)
    for found, expected in zip(values_and_gradients(in_ranges, made), values_and_gradients(whole, made), strict=True):
        torch.testing.assert_close(found, expected)


def test_in_bf16_ranges_are_no_further_from_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "WORKING_LOGITS_BYTES", 2**16)
    made = operands(64, 1000, torch.bfloat16)
    exact = tuple(value.detach().double() if value.is_floating_point() else value for value in made)
    truth = values_and_gradients(whole, tuple(v.requires_grad_() if v.is_floating_point() else v for v in exact))
    found, obvious = values_and_gradients(in_ranges, made), values_and_gradients(whole, made)
    for number in (0, 2, 3, 4):
        error, allowed = ((side[number].double() - truth[number]).norm() for side in (found, obvious))
        assert error <= 1.1 * allowed + 1e-9 * truth[number].norm()


def test_of_equal_logits_the_first_is_the_answer_as_in_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "WORKING_LOGITS_BYTES", 2 * sizes.BYTES_PER_WORKING_LOGIT * 4)
    states, words, bias = torch.zeros(2, WIDTH), torch.zeros(4, WIDTH), torch.tensor([0.0, 1.0, 1.0, 1.0])
    targets = torch.tensor([1, 3])
    assert in_ranges(states, words, bias, targets).correct == whole(states, words, bias, targets).correct == 1


class Largest(TorchDispatchMode):
    """The most bytes of any tensor with a row for each predicted token."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.bytes = rows, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.size(0) == self.rows:
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return made


@pytest.mark.parametrize("keeps", [True, False])
def test_no_tensor_of_logits_is_larger_than_said(keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    num_predicted, vocabulary, working = 31, 5000, 2**16
    monkeypatch.setattr(sizes, "WORKING_LOGITS_BYTES", working)
    if not keeps:
        monkeypatch.setattr(sizes, "KEPT_LOGITS_BYTES", num_predicted * vocabulary)
    made = operands(num_predicted, vocabulary, torch.bfloat16)
    with Largest(num_predicted) as largest:
        in_ranges(*made).loss_sum.backward()
    assert 0 < largest.bytes <= working
    assert made[1].grad is not None


def test_logits_are_kept_up_to_the_bound() -> None:
    vocabulary, most = 128_100, sizes.KEPT_LOGITS_BYTES
    predicted = most // (2 * vocabulary)
    assert sizes.kept_logits_bytes(predicted, vocabulary, element_bytes=2) == predicted * vocabulary * 2
    assert sizes.kept_logits_bytes(predicted + 1, vocabulary, element_bytes=2) == 0
    assert sizes.kept_logits_bytes(predicted, vocabulary, element_bytes=4) == 0
