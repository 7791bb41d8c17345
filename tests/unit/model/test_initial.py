"""Initial weights: their distribution, and that a name and a seed alone decide them."""

import pytest
import torch

from deberta_scale.model.initial import CHUNK_ELEMENTS, InitialWeights
from deberta_scale.model.pretraining import PretrainingModel
from tests.rows import small_model_config

WORDS = "deberta.embeddings.word_embeddings.weight"


def built(seed: int, **changes: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(PretrainingModel(small_model_config(**changes)).named_parameters())


def test_the_seed_decides_and_nothing_drawn_before() -> None:
    torch.manual_seed(1)
    torch.rand(100)
    again = dict(PretrainingModel(small_model_config()).named_parameters())
    once, other = built(1), built(2)
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once[WORDS], other[WORDS])


def test_other_layers_do_not_move_the_weights_of_the_first() -> None:
    small, large = built(1), built(1, num_hidden_layers=6, conv_kernel_size=3)
    assert all(torch.equal(value, large[name]) for name, value in small.items())


def test_layers_differ_from_each_other() -> None:
    weights, name = built(1), "deberta.encoder.layer.{}.attention.self.query_proj.weight"
    assert not torch.equal(weights[name.format(0)], weights[name.format(1)])


def test_distributions_are_those_of_the_official_code() -> None:
    weights = built(1, hidden_size=64, initializer_range=0.05, conv_kernel_size=3)
    dense = weights["deberta.encoder.layer.0.intermediate.dense.weight"]
    assert dense.std().item() == pytest.approx(0.05, rel=0.05) and abs(dense.mean().item()) < 0.003
    convolution, bound = weights["deberta.encoder.conv.conv.weight"], (64 * 3) ** -0.5
    assert convolution.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert convolution.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    for name, value in weights.items():
        if name.endswith("LayerNorm.weight"):
            assert (value == 1).all(), name
        elif name.endswith("bias") and "conv.conv" not in name:
            assert (value == 0).all(), name


def test_any_stretch_is_drawn_without_the_rest() -> None:
    table = torch.nn.Embedding(2 * CHUNK_ELEMENTS + 10, 1, device="meta")
    weights = InitialWeights(torch.nn.ModuleDict({"table": table}), 0.02, seed=3)
    whole = weights("table.weight", 0, table.num_embeddings)
    for start, size in [
        (0, 5),
        (CHUNK_ELEMENTS - 3, 6),
        (CHUNK_ELEMENTS, CHUNK_ELEMENTS + 10),
        (17, 2 * CHUNK_ELEMENTS - 7),
    ]:
        assert torch.equal(weights("table.weight", start, size), whole[start : start + size])
    assert not torch.equal(whole[:10], whole[CHUNK_ELEMENTS : CHUNK_ELEMENTS + 10])
