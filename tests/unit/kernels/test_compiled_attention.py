"""The compiled kernel: how near it is to the formula, over random shapes; and that threads change no bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deberta_scale.kernels import cpu, cpu_build, reference
from deberta_scale.kernels.signature import Dropout
from tests.attention_cases import errors, random_case

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-3}


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Rows of documents of any lengths, some rows empty, with any terms, and all or some places asking. One row is
    full, and no row of the table is shared by very many distances: where a few numbers remain, or large ones cancel,
    the roundings of bf16 do not average."""
    length = draw(st.integers(64, 300))
    documents = []
    for _ in range(draw(st.integers(1, 3))):
        sizes: list[int] = []
        for size in draw(st.lists(st.integers(1, length), max_size=4)):
            if sum(sizes) + size <= length:
                sizes.append(size)
        documents.append(sizes)
    documents.append([length])
    return dict(
        documents=documents,
        length=length,
        num_heads=draw(st.integers(2, 3)),
        head_size=draw(st.sampled_from([16, 24, 64, 80])),
        terms=draw(st.sampled_from([("c2p", "p2c"), ("c2p",), ("p2c",), ()])),
        query_share=draw(st.sampled_from([None, 0.15, 0.9])),
        dropout=draw(st.sampled_from([None, Dropout(0.1, 2**62 + 1), Dropout(0.6, 0)])),
        span=draw(st.integers(128, 300)),
        seed=draw(st.integers(0, 2**32)),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=shapes())
def test_value_and_gradients_over_random_shapes_packings_dropout_and_queries(
    dtype: torch.dtype, shape: dict[str, Any]
) -> None:
    case = random_case(**shape, dtype=dtype)
    found = errors(case.run(cpu.attention, dtype), case.run(reference.attention))
    assert max(found.values()) < TOLERANCES[dtype], found


@pytest.mark.parametrize("rows", [1, 3, 6])
@pytest.mark.parametrize("query_share", [None, 0.2])
def test_threads_change_no_bit(dtype: torch.dtype, rows: int, query_share: float | None) -> None:
    case = random_case([[90, 40]] * rows, 140, num_heads=3, query_share=query_share, dropout=Dropout(0.1, 9), span=60)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(case.run(cpu.attention, dtype))
    finally:
        torch.set_num_threads(before)
    for name, expected in results[0].items():
        assert all(torch.equal(found[name], expected) for found in results[1:]), name


def test_bad_input_is_refused_by_name() -> None:
    if reason := cpu_build.why_not(torch.float32):
        pytest.skip(reason)
    case = random_case([[9, 3], [7]], 12, query_share=0.5)
    places = case.view.query_places
    assert places is not None
    for change, named in (
        ({"query_places": places.flip(1)}, "query_places must ascend"),
        ({"query_places": places + 12}, "query_places must ascend"),
        ({"query_places": None}, "query_places must be given"),
        ({"document_starts": case.view.document_starts + 1}, "document_starts and document_ends"),
        ({"document_ends": case.view.document_ends * 2}, "document_starts and document_ends"),
        ({"rows_by_distance": torch.arange(23) + 2}, "rows_by_distance must be rows"),
        ({"rows_by_distance": torch.arange(20)}, "rows_by_distance must have"),
    ):
        with pytest.raises(RuntimeError, match=named):
            cpu.attention(case.query, case.keys, case.view._replace(**change))


def test_without_a_compiler_or_on_another_processor_it_is_said_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = cpu_build._load.__wrapped__()
    assert reason is not None and "no C++ compiler" in reason
    assert not list(tmp_path.rglob("*.so"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    reason = cpu_build.why_not.__wrapped__(torch.bfloat16)
    assert reason is not None and "avx512_bf16" in reason
    assert cpu_build.why_not.__wrapped__(torch.float16) is not None
