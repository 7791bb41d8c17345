"""Every attention kernel equals the formula, pair by pair, in value and in all gradients."""

import pytest
import torch

from deberta_scale.kernels import cpu, cpu_build, reference, skew
from deberta_scale.kernels.dropout import kept
from deberta_scale.kernels.signature import AttentionKernel, Dropout, document_bounds
from tests.attention_cases import attention_pair_by_pair, random_case

KERNELS = {"reference": reference.attention, "skew": skew.attention, "cpu": cpu.attention}
TERMS = [("c2p", "p2c"), ("c2p",), ("p2c",), ()]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> AttentionKernel:
    if request.param == "cpu" and (reason := cpu_build.why_not(torch.float32)):
        pytest.skip(reason)
    return KERNELS[request.param]


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("query_share", [None, 0.4])
@pytest.mark.parametrize("dropout", [None, Dropout(0.3, 77)])
def test_equals_the_formula_pair_by_pair_in_value_and_gradient(
    kernel: AttentionKernel, terms: tuple[str, ...], query_share: float | None, dropout: Dropout | None
) -> None:
    """R11."""
    case = random_case([[7, 4], [12], []], 13, head_size=5, terms=terms, query_share=query_share, dropout=dropout)
    found, expected = case.run(kernel), case.run(attention_pair_by_pair)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not found["output"][2].any()


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
def test_blocks_meet_without_a_seam(kernel: AttentionKernel, length: int) -> None:
    case = random_case([[length], [length // 3, length // 2]], length, span=50)
    torch.testing.assert_close(case.run(kernel), case.run(reference.attention), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("query_share", [None, 0.3])
def test_places_far_apart_share_a_row_of_the_table(
    kernel: AttentionKernel, terms: tuple[str, ...], query_share: float | None
) -> None:
    """Documents several times as long as the distances that are told apart, so that whole tiles have one row."""
    case = random_case([[700], [390, 300]], 710, span=12, terms=terms, query_share=query_share)
    torch.testing.assert_close(case.run(kernel), case.run(reference.attention), rtol=1e-5, atol=1e-4)


def test_a_place_drops_the_same_whoever_asks_beside_it(kernel: AttentionKernel) -> None:
    dropout = Dropout(0.5, 3)
    case = random_case([[9, 6], [12]], 16, query_share=0.5, dropout=dropout)
    rows, places = torch.arange(2)[:, None], case.view.query_places
    assert places is not None
    everywhere = torch.zeros(2, 16, *case.query.shape[2:])
    everywhere[rows, places] = case.query
    everywhere[:, 15] = 0
    some = kernel(case.query, case.keys, case.view, dropout)
    all_places = kernel(everywhere, case.keys, case.view._replace(query_places=None), dropout)
    torch.testing.assert_close(some[places >= 0], all_places[rows, places][places >= 0], rtol=1e-5, atol=1e-5)


def test_dropout_keeps_the_share_it_should_and_depends_on_seed_row_head_query_and_key() -> None:
    length = 256
    places = torch.arange(length).expand(8, length)
    keep = kept(Dropout(0.1, 5), 8, places, length)
    assert keep.shape == (8, 8, length, length)
    assert keep.float().mean() == pytest.approx(0.9, abs=0.001)
    for axis in range(4):
        others = [other for other in range(4) if other != axis]
        assert (keep.float().mean(others) - 0.9).abs().max() < 0.012
        agreement = (keep == keep.roll(1, axis)).float().mean()
        assert agreement == pytest.approx(0.82, abs=0.002)  # of independent draws: 0.9² + 0.1²
    another = kept(Dropout(0.1, 6), 8, places, length)
    assert (keep == another).float().mean() == pytest.approx(0.82, abs=0.002)


def test_documents_are_runs_of_one_number_and_padding_belongs_to_none() -> None:
    starts, ends = document_bounds(torch.tensor([[0, 1, 1, 2, 3, 3, 0], [1, 1, 1, 1, 1, 1, 1]]))
    assert starts.tolist() == [[0, 1, 1, 3, 4, 4, 0], [0] * 7]
    assert ends.tolist() == [[0, 3, 3, 4, 6, 6, 0], [7] * 7]
