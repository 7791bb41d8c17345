"""`launch/bench.py head`: the product with the vocabulary and its loss, forward and backward.

Ours goes over the vocabulary in ranges, at predicted places only; beside it the same with all logits at once, and the
way of transformers, which makes logits of every place.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bench_sides
import torch
from bench_models import MASKED, VOCABULARY
from bench_sides import DTYPES, OURS, Step

from data_prep.command import positive_int
from deberta_scale.model import vocabulary_loss
from deberta_scale.model.vocabulary_loss import VocabularyLoss

SUMMARY = "The product with the vocabulary and its loss, beside all logits at once and logits of every place."


@dataclass(frozen=True)
class Work:
    tokens: int
    vocabulary: int
    width: int
    dtype: torch.dtype

    @property
    def predicted(self) -> int:
        return int(MASKED * self.tokens)


def _operands(work: Work, num_states: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(states, words, bias) and targets."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((num_states, work.width), (work.vocabulary, work.width), (work.vocabulary,))
    scales = (1.0, 0.02, 0.0)
    made = [
        (scale * torch.randn(shape, generator=generator)).to(work.dtype).requires_grad_()
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    return made, torch.randint(0, work.vocabulary, (num_states,), generator=generator)


def _at_predicted(loss: Callable[..., VocabularyLoss], work: Work) -> Step:
    operands, targets = _operands(work, work.predicted)

    def step() -> None:
        torch.autograd.grad(loss(*operands, targets).loss_sum, operands)

    return step


def ours(work: Work) -> Step:
    return _at_predicted(vocabulary_loss.in_ranges, work)


def whole(work: Work) -> Step:
    return _at_predicted(vocabulary_loss.whole, work)


def every_place(work: Work) -> Step:
    """As `DebertaV2ForMaskedLM` does: places that are not predicted have the label -100."""
    (states, words, bias), targets = _operands(work, work.tokens)
    targets[work.predicted :] = -100

    def step() -> None:
        logits = torch.nn.functional.linear(states, words, bias)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        torch.autograd.grad(loss, [states, words, bias])

    return step


SIDES: dict[str, Callable[[Work], Step]] = {
    OURS: ours,
    "ours, all logits at once": whole,
    "logits of every place": every_place,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vocabulary", type=positive_int, nargs="+", default=[VOCABULARY], metavar="V", help="pieces")
    parser.add_argument("--tokens", type=positive_int, default=4096, help=f"of a step, {MASKED:.0%} of them predicted")
    parser.add_argument("--width", type=positive_int, default=768, help="of the word table (default: 768)")
    bench_sides.add_options(parser)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises ValueError when nothing would be predicted, or a package is missing."""
    dtype = DTYPES[arguments.dtype]
    works = [Work(arguments.tokens, vocabulary, arguments.width, dtype) for vocabulary in arguments.vocabulary]
    if not works[0].predicted:
        raise ValueError(f"--tokens {arguments.tokens}: {MASKED:.0%} of them is no token; give 7 or more")
    facts = bench_sides.prepare(arguments)
    rows = [
        side.row()
        for work in works
        for side in bench_sides.measure(
            SIDES, work, arguments, {"vocabulary": work.vocabulary, "predicted": work.predicted}
        )
    ]
    return {**facts, "tokens": arguments.tokens, "width": arguments.width, "rows": rows}


def as_text(result: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"vocabulary head and loss, forward and backward, of {result['tokens']:,} tokens, width {result['width']}",
            bench_sides.settings_line(result),
            "",
            *bench_sides.table(result["rows"], "vocabulary"),
        ]
    )
