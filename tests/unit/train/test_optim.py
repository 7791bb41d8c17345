"""Parameter groups: what is decayed, and how fast each layer learns."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from deberta_scale.finetune.model import TaskModel
from deberta_scale.finetune.tasks import TASKS
from deberta_scale.train.engine import set_learning_rate
from deberta_scale.train.optim import FRACTION, parameter_groups
from tests.rows import small_model_config

NUM_LAYERS = 3
HALVED = {
    "model.classifier.weight": 1.0,
    "model.pooler.dense.bias": 1.0,
    "model.deberta.encoder.layer.2.output.dense.weight": 0.5,
    "model.deberta.encoder.layer.2.output.LayerNorm.weight": 0.5,
    "model.deberta.encoder.layer.1.attention.self.query_proj.bias": 0.25,
    "model.deberta.encoder.layer.0.intermediate.dense.weight": 0.125,
    "model.deberta.encoder.conv.conv.weight": 0.125,  # beside the first layer
    "model.deberta.encoder.LayerNorm.weight": 0.0625,  # of the relative table
    "model.deberta.encoder.rel_embeddings.weight": 0.0625,
    "model.deberta.embeddings.LayerNorm.bias": 0.0625,
    "model.deberta.embeddings.word_embeddings.weight": 0.0625,
}


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, nn.Parameter]:
    with torch.device("meta"):
        model = TaskModel(TASKS["rte"], small_model_config(num_hidden_layers=NUM_LAYERS, conv_kernel_size=3))
    return dict(model.named_parameters())


def by_name(parameters: Mapping[str, nn.Parameter], layer_decay: float) -> dict[str, dict[str, Any]]:
    """The group of each parameter, which must be in exactly one."""
    groups = parameter_groups(parameters.items(), 0.01, layer_decay)
    assert all(group["params"] for group in groups)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(of) == len(parameters)
    return {name: of[id(parameter)] for name, parameter in parameters.items()}


def test_a_layer_learns_at_a_fraction_of_the_one_above(parameters: Mapping[str, nn.Parameter]) -> None:
    found = by_name(parameters, layer_decay=0.5)
    assert {name: found[name][FRACTION] for name in HALVED} == HALVED
    assert {group[FRACTION] for group in found.values()} == {0.5**n for n in range(NUM_LAYERS + 2)}


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_biases_and_layer_norms_are_not_decayed(parameters: Mapping[str, nn.Parameter], layer_decay: float) -> None:
    for name, group in by_name(parameters, layer_decay).items():
        assert group["weight_decay"] == (0.0 if name.endswith(("bias", "LayerNorm.weight")) else 0.01), name


def test_without_layer_decay_there_are_two_groups(parameters: Mapping[str, nn.Parameter]) -> None:
    decayed, others = parameter_groups(parameters.items(), 0.01)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert decayed[FRACTION] == others[FRACTION] == 1.0
    for group in (decayed, others):
        members = {id(parameter) for parameter in group["params"]}
        in_order = [parameter for parameter in parameters.values() if id(parameter) in members]
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in in_order]


def test_the_learning_rate_is_that_of_the_head() -> None:
    embedding, head = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    layer = nn.Parameter(torch.ones(2))
    named = {"model.deberta.embeddings.word_embeddings.weight": embedding, "model.classifier.weight": head}
    named["model.deberta.encoder.layer.0.output.dense.weight"] = layer
    optimizer = torch.optim.SGD(parameter_groups(named.items(), 0.0, layer_decay=0.5), lr=1.0)
    set_learning_rate(SimpleNamespace(optimizer=optimizer), 0.8)
    for parameter in named.values():
        parameter.grad = torch.ones(2)
    optimizer.step()
    moved = [1 - float(parameter.detach()[0]) for parameter in (head, layer, embedding)]
    assert moved == pytest.approx([0.8, 0.4, 0.2])
