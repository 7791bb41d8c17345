"""Cross-entropy over a vocabulary, piece range by piece range: what a step holds of logits has a bound.

Logits of all predicted tokens over 128,000 pieces take more memory than the rest of the head together. Here a range of
pieces at a time is multiplied, and the logarithm of the sum of exponentials is carried on from range to range. Between
forward and backward pass logits are kept in the dtype of the model as long as they are few, and computed again
otherwise. Shape letters: P predicted tokens, W width of the word table, V vocabulary.
"""

from typing import Any, NamedTuple

import torch

from deberta_scale.model.sizes import kept_logits_bytes, pieces_at_once


class VocabularyLoss(NamedTuple):
    loss_sum: torch.Tensor
    """Scalar, fp32: sum of the cross-entropies in nats."""
    correct: torch.Tensor
    """Scalar, int64: how many targets have the largest logit."""


def whole(
    states: torch.Tensor, word_embeddings: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor
) -> VocabularyLoss:
    """The obvious way, with all logits at once: what `in_ranges` is measured by. Shapes as there."""
    logits = logits_of(states, word_embeddings, bias)
    loss_sum = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    return VocabularyLoss(loss_sum, (logits.detach().argmax(-1) == targets).sum())


def in_ranges(
    states: torch.Tensor, word_embeddings: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor
) -> VocabularyLoss:
    """States [P, W], word table [V, W], bias [V], targets [P] → loss, differentiable by the first three."""
    return VocabularyLoss(*_InRanges.apply(states, word_embeddings, bias, targets))


def logits_of(states: torch.Tensor, word_embeddings: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[P, V], fp32."""
    return torch.nn.functional.linear(states, word_embeddings, bias).float()


class _InRanges(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, word_embeddings: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_predicted, vocabulary = len(targets), len(word_embeddings)
        keeps = kept_logits_bytes(num_predicted, vocabulary, states.element_size()) > 0
        kept: list[torch.Tensor] = []
        largest = torch.full((num_predicted,), -torch.inf, device=states.device)
        best = torch.zeros_like(targets)
        sums, of_targets = torch.zeros_like(largest), torch.zeros_like(largest)
        for start in range(0, vocabulary, pieces_at_once(num_predicted)):
            pieces = slice(start, start + pieces_at_once(num_predicted))
            logits = torch.nn.functional.linear(states, word_embeddings[pieces], bias[pieces])
            if keeps:
                kept.append(logits)
            logits = logits.float()
            here, column = _targets_in(targets, start, logits.size(1))
            of_targets = torch.where(here, logits.gather(-1, column[:, None])[:, 0], of_targets)
            top, place = logits.max(-1)
            best = torch.where(top > largest, place + start, best)
            before, largest = largest, torch.maximum(top, largest)
            sums = sums * (before - largest).exp() + (logits - largest[:, None]).exp_().sum(-1)
        log_sums = largest + sums.log()
        ctx.save_for_backward(states, word_embeddings, bias, targets, log_sums, *kept)
        correct = (best == targets).sum()
        ctx.mark_non_differentiable(correct)
        return (log_sums - of_targets).sum(), correct

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        states, word_embeddings, bias, targets, log_sums, *kept = ctx.saved_tensors
        of_states = torch.zeros(states.shape, dtype=torch.float32, device=states.device)
        of_words, of_bias = torch.empty_like(word_embeddings), torch.empty_like(bias)
        for number, start in enumerate(range(0, len(word_embeddings), pieces_at_once(len(targets)))):
            pieces = slice(start, start + pieces_at_once(len(targets)))
            words = word_embeddings[pieces]
            logits = kept[number] if kept else torch.nn.functional.linear(states, words, bias[pieces])
            towards = (logits - log_sums[:, None]).exp_()
            here, column = _targets_in(targets, start, len(words))
            towards.scatter_add_(-1, column[:, None], -here[:, None].float())
            of_logits = towards.mul_(gradients[0]).to(states.dtype)
            of_states += of_logits @ words
            of_words[pieces] = of_logits.mT @ states
            of_bias[pieces] = of_logits.sum(0)
        return of_states.to(states.dtype), of_words, of_bias, None


def _targets_in(targets: torch.Tensor, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which targets lie in a range of pieces, and in which column of it; of the others any."""
    column = targets - start
    return (column >= 0) & (column < count), column.clamp(0, count - 1)
