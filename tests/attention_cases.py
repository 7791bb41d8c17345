"""Random inputs of attention kernels, the formula pair by pair, and how far two results are apart."""

import math
from dataclasses import dataclass

import torch

from deberta_scale.kernels.dropout import kept
from deberta_scale.kernels.signature import (
    AttentionKernel,
    Dropout,
    Keys,
    View,
    document_bounds,
    places_of_queries,
)

NAMES = ("output", "query", "key", "value", "relative_key", "relative_query")


@dataclass
class Case:
    """Arguments of a kernel, and the gradient that its output gets."""

    query: torch.Tensor
    keys: Keys
    view: View
    dropout: Dropout | None
    output_gradient: torch.Tensor

    def run(self, kernel: AttentionKernel, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """Output and gradients of a kernel that is given all tensors in `dtype`, as fp32."""
        query, *keys = (None if t is None else t.to(dtype).requires_grad_() for t in (self.query, *self.keys))
        assert query is not None
        output = kernel(query, Keys(*keys), self.view, self.dropout)  # type: ignore[arg-type]
        inputs = [tensor for tensor in (query, *keys) if tensor is not None]
        found = torch.autograd.grad(output, inputs, self.output_gradient.to(dtype))
        names = [name for name, tensor in zip(NAMES[1:], (query, *keys), strict=True) if tensor is not None]
        assert all(tensor.dtype == dtype for tensor in (output, *found))
        return {"output": output.detach().float(), **dict(zip(names, (g.float() for g in found), strict=True))}


def random_case(
    documents: list[list[int]],
    length: int,
    num_heads: int = 2,
    head_size: int = 16,
    terms: tuple[str, ...] = ("c2p", "p2c"),
    query_share: float | None = None,
    dropout: Dropout | None = None,
    span: int = 12,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Rows given as the lengths of their documents, padded to `length`. `span` is half the rows of the relative table;
    with `query_share` that part of all places asks. Numbers are such that `dtype` holds them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).float()

    segment_ids = torch.zeros(len(documents), length, dtype=torch.long)
    for row, sizes in zip(segment_ids, documents, strict=True):
        row[: sum(sizes)] = torch.arange(1, len(sizes) + 1).repeat_interleave(torch.tensor(sizes, dtype=torch.long))
    table = (torch.arange(1 - length, length) + span).clamp(0, 2 * span - 1) if terms else None
    query_places = None
    if query_share is not None:
        asks = (torch.rand(len(documents), length, generator=generator) < query_share) & (segment_ids > 0)
        query_places = torch.full((len(documents), int(asks.sum(1).max())), -1)
        for row, places in zip(query_places, asks, strict=True):
            row[: int(places.sum())] = places.nonzero().flatten()
    num_queries = length if query_places is None else query_places.size(1)
    shape = (len(documents), num_queries, num_heads, head_size)
    keys = Keys(
        random(len(documents), length, num_heads, head_size),
        random(len(documents), length, num_heads, head_size),
        random(2 * span, num_heads, head_size) if "c2p" in terms else None,
        random(2 * span, num_heads, head_size) if "p2c" in terms else None,
    )
    view = View(*document_bounds(segment_ids), table, query_places)
    return Case(random(*shape), keys, view, dropout, random(*shape))


def attention_pair_by_pair(query: torch.Tensor, keys: Keys, view: View, dropout: Dropout | None = None) -> torch.Tensor:
    """One i at a time: softmax over j of (q_i·k_j + q_i·kr[δ(i,j)] + k_j·qr[δ(i,j)]) / sqrt(D * terms), times v_j."""
    num_rows, num_queries, num_heads, head_size = query.shape
    length = keys.key.size(1)
    terms = 1 + (keys.relative_key is not None) + (keys.relative_query is not None)
    places = places_of_queries(view)
    keep = None if dropout is None else kept(dropout, num_heads, places, length)
    outputs = []
    for b in range(num_rows):
        for q in range(num_queries):
            for h in range(num_heads):
                i = int(places[b, q])
                seen = [] if i < 0 else range(int(view.document_starts[b, i]), int(view.document_ends[b, i]))
                scores = []
                for j in seen:
                    score = query[b, q, h] @ keys.key[b, j, h]
                    if view.rows_by_distance is not None:
                        row = view.rows_by_distance[i - j + length - 1]
                        if keys.relative_key is not None:
                            score = score + query[b, q, h] @ keys.relative_key[row, h]
                        if keys.relative_query is not None:
                            score = score + keys.key[b, j, h] @ keys.relative_query[row, h]
                    scores.append(score / math.sqrt(head_size * terms))
                output = query[b, q, h] * 0
                weights = torch.stack(scores).softmax(0) if scores else []
                for weight, j in zip(weights, seen, strict=True):
                    if keep is None or keep[b, h, q, j]:
                        output = output + weight * keys.value[b, j, h] / (1 - (dropout.probability if dropout else 0))
                outputs.append(output)
    return torch.stack(outputs).view(query.shape)


def errors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Norm of the difference, relative to the norm of what is expected, for output and gradients. A truth of next to
    nothing, that large terms cancel to, counts as a hundredth in each number."""
    assert found.keys() == expected.keys()
    return {
        name: float((found[name] - truth).norm() / max(truth.norm(), 0.01 * truth.numel() ** 0.5))
        for name, truth in expected.items()
    }
