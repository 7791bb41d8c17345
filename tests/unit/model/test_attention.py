"""Disentangled attention equals its formula, written as a loop over pairs."""

import math

import pytest
import torch

from deberta_scale.model.attention import Keys, View, disentangled_attention


def attention_pair_by_pair(query: torch.Tensor, keys: Keys, view: View) -> torch.Tensor:
    """One i at a time: softmax over j of (q_i·k_j + q_i·kr[δ(i,j)] + k_j·qr[δ(i,j)]) / sqrt(D * terms), times v_j."""
    num_rows, num_queries, num_heads, head_size = query.shape
    terms = 1 + (keys.relative_key is not None) + (keys.relative_query is not None)
    output = torch.zeros_like(query)
    for b in range(num_rows):
        for h in range(num_heads):
            for i in range(num_queries):
                scores, seen = [], []
                for j in range(keys.key.size(1)):
                    if not view.allowed[b, i, j]:
                        continue
                    score = query[b, i, h] @ keys.key[b, j, h]
                    if view.relative_rows is not None:
                        rows = view.relative_rows if view.relative_rows.dim() == 2 else view.relative_rows[b]
                        if keys.relative_key is not None:
                            score = score + query[b, i, h] @ keys.relative_key[rows[i, j], h]
                        if keys.relative_query is not None:
                            score = score + keys.key[b, j, h] @ keys.relative_query[rows[i, j], h]
                    scores.append(score / math.sqrt(head_size * terms))
                    seen.append(j)
                if seen:
                    weights = torch.stack(scores).softmax(0)
                    output[b, i, h] = sum(weight * keys.value[b, j, h] for weight, j in zip(weights, seen, strict=True))
    return output


@pytest.mark.parametrize("terms", [("c2p", "p2c"), ("c2p",), ("p2c",), ()])
@pytest.mark.parametrize("num_queries", [7, 3])
def test_equals_the_formula_pair_by_pair_in_value_and_gradient(terms: tuple[str, ...], num_queries: int) -> None:
    """R11."""
    torch.manual_seed(0)
    rows, length, heads, size, table = 2, 7, 2, 4, 6

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float32, requires_grad=True)

    query, key, value = (
        random(rows, num_queries, heads, size),
        random(rows, length, heads, size),
        random(rows, length, heads, size),
    )
    relative_key = random(table, heads, size) if "c2p" in terms else None
    relative_query = random(table, heads, size) if "p2c" in terms else None
    inputs = [t for t in (query, key, value, relative_key, relative_query) if t is not None]
    shape = (num_queries, length) if num_queries == length else (rows, num_queries, length)
    allowed = torch.rand(rows, num_queries, length) < 0.7
    allowed[1, 2] = False  # a query that may see nothing
    view = View(allowed, torch.randint(0, table, shape) if terms else None)
    keys = Keys(key, value, relative_key, relative_query)

    weights = torch.randn(rows, num_queries, heads, size)
    results = []
    for function in (disentangled_attention, attention_pair_by_pair):
        output = function(query, keys, view)
        results.append((output, *torch.autograd.grad((output * weights).sum(), inputs)))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    assert not results[0][0][1, 2].any()


def test_dropout_zeroes_attention_and_keeps_its_expectation() -> None:
    torch.manual_seed(0)
    query, key = torch.zeros(1, 400, 1, 8), torch.zeros(1, 50, 1, 8)
    keys = Keys(key, torch.ones_like(key), None, None)
    view = View(torch.ones(1, 400, 50, dtype=torch.bool), None)
    outputs = disentangled_attention(query, keys, view, dropout_probability=0.5)
    assert outputs.mean() == pytest.approx(1.0, abs=0.02)
    assert outputs.std() > 0.05
