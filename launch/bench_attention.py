"""`launch/bench.py attention`: attention between its projections, forward and with all five gradients.

The sides get the same queries, keys, values and projected tables, of base width: the kernel that training would choose
here, those in torch operations, the module of transformers with its projections taken out, and plain attention without
relative positions, which is less work.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bench_sides
import torch
from bench_sides import DTYPES, OURS, Step

from deberta_scale.config import ModelConfig
from deberta_scale.convert.hub_config import hub_config
from deberta_scale.kernels.choice import choose
from deberta_scale.kernels.reference import attention as reference_attention
from deberta_scale.kernels.signature import AttentionKernel, Dropout, Keys, View
from deberta_scale.kernels.skew import attention as skew_attention
from deberta_scale.model.relative import rows_by_distance

SUMMARY = "Attention alone, forward and backward, beside torch operations, transformers and plain attention."
NUM_HEADS, HEAD_SIZE = 12, 64


@dataclass(frozen=True)
class Work:
    rows: int
    length: int
    dtype: torch.dtype
    dropout: float

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def model(self) -> ModelConfig:
        """Of which only the shapes of attention count."""
        return ModelConfig(
            vocab_size=1000,
            max_position_embeddings=max(512, self.length),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=self.dropout,
        )


def _operands(work: Work) -> tuple[torch.Tensor, Keys]:
    generator = torch.Generator().manual_seed(1)
    tokens, table = (work.rows, work.length, NUM_HEADS, HEAD_SIZE), (2 * work.model.relative_span, NUM_HEADS, HEAD_SIZE)
    query, key, value, relative_key, relative_query = (
        torch.randn(shape, generator=generator).to(work.dtype).requires_grad_()
        for shape in (tokens, tokens, tokens, table, table)
    )
    return query, Keys(key, value, relative_key, relative_query)


def _step_of(operands: list[torch.Tensor], attend: Callable[[], torch.Tensor]) -> Step:
    upstream: list[torch.Tensor] = []

    def step() -> None:
        output = attend()
        if not upstream:
            upstream.append(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype))
        torch.autograd.grad(output, operands, upstream)

    return step


def _with(kernel: AttentionKernel, work: Work) -> Step:
    query, keys = _operands(work)
    places = torch.zeros(work.rows, work.length, dtype=torch.int64)
    rows = rows_by_distance(work.length, work.model, torch.device("cpu"))
    view = View(places, places + work.length, rows, query_places=None)
    dropout = Dropout(work.dropout, seed=1) if work.dropout else None
    return _step_of([query, *keys], lambda: kernel(query, keys, view, dropout))


def ours(work: Work) -> Step:
    return _with(choose(torch.device("cpu"), work.dtype, all_places_ask=True).attention, work)


def skew(work: Work) -> Step:
    return _with(skew_attention, work)


def reference(work: Work) -> Step:
    return _with(reference_attention, work)


class _Given(torch.nn.Module):
    """Stands for a projection: of hidden states one tensor, of the relative table another. Which of them is asked for
    is told by the width of the input, a mere marker."""

    def __init__(self, of_hidden: torch.Tensor, of_table: torch.Tensor | None) -> None:
        super().__init__()
        self.by_width = {1: of_hidden, 2: of_table}

    def forward(self, marker: torch.Tensor) -> torch.Tensor | None:
        return self.by_width[marker.size(-1)]


def deberta_of_transformers(work: Work) -> Step:
    from transformers import DebertaV2Config
    from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention, build_relative_position

    settings = hub_config(work.model)
    for name in ("architectures", "auto_map", "model_type"):
        settings.pop(name, None)
    module = DisentangledSelfAttention(DebertaV2Config(**settings)).train()
    query, keys = _operands(work)
    assert keys.relative_key is not None and keys.relative_query is not None
    flat = [tensor.flatten(-2) for tensor in (query, keys.key, keys.value)]
    tables = [tensor.flatten(-2)[None] for tensor in (keys.relative_query, keys.relative_key)]
    module.query_proj, module.key_proj = _Given(flat[0], tables[0]), _Given(flat[1], tables[1])
    module.value_proj = _Given(flat[2], None)
    hidden, table = torch.zeros(work.rows, work.length, 1), torch.zeros(2 * work.model.relative_span, 2)
    mask = torch.ones(work.rows, 1, work.length, work.length, dtype=torch.bool)
    places = torch.empty(1, work.length, 1)
    distances = build_relative_position(
        places, places, bucket_size=work.model.position_buckets, max_position=work.model.max_relative_positions
    )
    return _step_of([query, *keys], lambda: module(hidden, mask, relative_pos=distances, rel_embeddings=table)[0])


def plain(work: Work) -> Step:
    query, keys = _operands(work)
    operands = [query, keys.key, keys.value]

    def attend() -> torch.Tensor:
        heads_first = [tensor.transpose(1, 2) for tensor in operands]
        return torch.nn.functional.scaled_dot_product_attention(*heads_first, dropout_p=work.dropout)

    return _step_of(operands, attend)


SIDES: dict[str, Callable[[Work], Step]] = {
    OURS: ours,
    "ours in blocks (skew)": skew,
    "ours, the formula (reference)": reference,
    "DeBERTa of transformers": deberta_of_transformers,
    "plain attention (SDPA)": plain,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    bench_sides.add_shape_options(parser, lengths=[128, 512, 2048])
    parser.add_argument(
        "--dropout", type=bench_sides.probability, default=0.0, metavar="P", help="of probabilities (default: 0)"
    )
    bench_sides.add_options(parser)
    bench_sides.add_plot_option(parser)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises ValueError when a length does not divide the tokens, or a package is missing."""
    bench_sides.check_shapes(arguments)
    bench_sides.check_plot(arguments.plot)
    facts = bench_sides.prepare(arguments)
    works = [
        Work(arguments.tokens // length, length, DTYPES[arguments.dtype], arguments.dropout)
        for length in arguments.length
    ]
    rows = [
        side.row()
        for work in works
        for side in bench_sides.measure(SIDES, work, arguments, {"length": work.length, "rows": work.rows})
    ]
    kernel = choose(torch.device("cpu"), DTYPES[arguments.dtype], all_places_ask=True)
    result = {**facts, "dropout": arguments.dropout, "kernel": kernel.name, "why": kernel.why, "rows": rows}
    if arguments.plot is not None:
        bench_sides.plot(rows, arguments.plot, _title(result))
    return result


def _title(result: dict[str, Any]) -> str:
    return f"attention of {NUM_HEADS} heads of {HEAD_SIZE}, forward and five gradients, dropout {result['dropout']:g}"


def as_text(result: dict[str, Any]) -> str:
    return "\n".join(
        [
            _title(result),
            f"our kernel is {result['kernel']}: {result['why']}",
            bench_sides.settings_line(result),
            "",
            *bench_sides.table(result["rows"], "length"),
        ]
    )
