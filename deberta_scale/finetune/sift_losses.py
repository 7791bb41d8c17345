"""How far the outputs of a clean and a perturbed pass are apart.

Shape letters: B batch, L length, N labels, C choices. A distribution is the last dimension of a tensor of logits.
"""

from typing import Any, NamedTuple

import torch

from deberta_scale.config_sift import Divergence, Head

SHAPES = {
    "classification": "logits [B, N] with N of 2 or more",
    "regression": "numbers [B] or [B, 1]",
    "span": "a pair of logits [B, L], of the first and of the last token",
    "tokens": "logits [B, L, N] with N of 2 or more",
    "choice": "logits [B, C] with C of 2 or more",
}
NUM_DIMENSIONS = {"classification": 2, "regression": 2, "span": 2, "tokens": 3, "choice": 2}
COUNTED = {
    "span": "[B, L], true where a token may begin or end an answer, padding excluded",
    "tokens": "[B, L], true for the tokens that have a label",
}


class Apart(NamedTuple):
    """Sums travel with what they are to be divided by."""

    total: torch.Tensor
    """Scalar fp32: the divergences of all distributions that count, added up."""
    num_compared: torch.Tensor
    """Scalar int64: how many they are."""


def all_apart(divergences: torch.Tensor) -> Apart:
    """Of divergences that all count."""
    return Apart(divergences.sum(), torch.full((), divergences.numel(), device=divergences.device))


def logits_of_task(task: Head, outputs: Any) -> list[torch.Tensor]:
    """A model's output as tensors of logits in fp32, one distribution (or number) in each last dimension.

    Raises ValueError when the output is not what the task gives.
    """
    given = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    if not all(isinstance(tensor, torch.Tensor) for tensor in given):
        kinds = ", ".join(type(value).__name__ for value in given)
        raise ValueError(f"SiFT of {task} needs {SHAPES[task]}, not {kinds}; say with `logits` where they are")
    if task == "regression":
        given = [tensor.unsqueeze(-1) if tensor.ndim == 1 else tensor for tensor in given]
    fits = len(given) == (2 if task == "span" else 1) and all(
        tensor.ndim == NUM_DIMENSIONS[task] and (tensor.size(-1) == 1) == (task == "regression") for tensor in given
    )
    if not fits:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in given)
        raise ValueError(f"SiFT of {task} needs {SHAPES[task]}; the model gave {shapes}")
    return [tensor.float() for tensor in given]


def check_counted(task: Head, logits: list[torch.Tensor], counted: torch.Tensor | None) -> None:
    """Raise ValueError unless `counted` is what the task's `compare` takes."""
    if counted is None:
        if task in COUNTED:
            raise ValueError(f"SiFT of {task} needs `counted` {COUNTED[task]}")
        return
    expected = logits[0].shape if _counts_places(task) else logits[0].shape[:-1]
    if counted.dtype != torch.bool or counted.shape != expected:
        raise ValueError(
            f"SiFT of {task} needs `counted` of shape {list(expected)}, bool; given: {list(counted.shape)},"
            f" {str(counted.dtype).removeprefix('torch.')}"
        )


def compare(
    task: Head,
    kind: Divergence,
    perturbed: list[torch.Tensor],
    clean: list[torch.Tensor],
    counted: torch.Tensor | None,
) -> Apart:
    """Divergences between the distributions of two passes. `counted` has the shape of the logits for spans and multiple
    choice, where it says which places a distribution has; in other tasks that of the distributions (without the last
    dimension), and says which of them count."""
    places = counted if _counts_places(task) else None
    apart = torch.stack([divergence(kind, p, c, places) for p, c in zip(perturbed, clean, strict=True)])
    if counted is None or places is not None:
        return all_apart(apart)
    return Apart(torch.where(counted, apart, 0.0).sum(), counted.sum() * len(perturbed))


def divergence(
    kind: Divergence, perturbed: torch.Tensor, clean: torch.Tensor, places: torch.Tensor | None = None
) -> torch.Tensor:
    """[..., N] and [..., N] → [...]. Of each distribution only `places` (bool, as the logits) exist.

    symmetric_kl: KL(clean, perturbed) + KL(perturbed, clean); kl: KL(clean, perturbed), its first argument held fixed;
    mse: mean square of the logits' differences.
    """
    if kind == "mse":
        squares = (perturbed - clean).square()
        if places is None:
            return squares.mean(-1)
        return torch.where(places, squares, 0.0).sum(-1) / places.sum(-1).clamp(min=1)
    log_p, log_c = _log_probabilities(perturbed, places), _log_probabilities(clean, places)
    if kind == "kl":
        log_c = log_c.detach()
        terms = log_c.exp() * (log_c - log_p)
    else:
        terms = (log_c.exp() - log_p.exp()) * (log_c - log_p)
    return (terms if places is None else torch.where(places, terms, 0.0)).sum(-1)


def official_divergence(perturbed: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """[..., N] and [..., N] → [...]: cross-entropy in both directions, the weights of both held fixed. Not zero for
    equal outputs; its gradient there is."""
    log_p, log_c = perturbed.log_softmax(-1), clean.log_softmax(-1)
    return -(log_c.exp().detach() * log_p + log_p.exp().detach() * log_c).sum(-1)


def _counts_places(task: Head) -> bool:
    return task in ("span", "choice")


def _log_probabilities(logits: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """Finite also where a model gave -inf: such a place has probability 0 and no divergence."""
    least = torch.finfo(logits.dtype).min
    logits = logits.clamp(min=least)
    return (logits if places is None else logits.masked_fill(~places, least)).log_softmax(-1)
