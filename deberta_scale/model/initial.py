"""Initial weights, as the official code draws them, fixed by a seed and a parameter's name alone.

They do not depend on the order of construction, on the number of ranks or on what a rank holds: each parameter is cut
into chunks, each chunk has a generator of its own (numpy's, whose numbers are the same on every machine), and any
stretch can be drawn without the rest.
"""

import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

CHUNK_ELEMENTS = 2**20

Draw = Callable[[np.random.Generator, int], np.ndarray]
"""That many values of one parameter, fp32."""


class _Parameter(NamedTuple):
    size: int
    draw: Draw


class InitialWeights:
    """The weights that a fresh model begins with, drawn when they are asked for.

    Linear layers and tables: normal weights and zero biases. The convolution keeps torch's own uniform distribution,
    LayerNorm its ones and zeros, the head's bias for the vocabulary is zero.
    """

    def __init__(self, model: nn.Module, standard_deviation: float, seed: int) -> None:
        """`model` may be on the meta device: only its shapes are looked at."""
        self._seed = seed
        self._parameters = {
            f"{path}.{name}".removeprefix("."): _Parameter(
                parameter.numel(), _draw_of(module, name, standard_deviation)
            )
            for path, module in model.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
        }

    def __call__(self, name: str, start: int, size: int) -> torch.Tensor:
        """The values `[start, start + size)` of a flattened parameter: [size], fp32, on the host."""
        parameter, values = self._parameters[name], np.empty(size, dtype=np.float32)
        assert start + size <= parameter.size
        digest = hashlib.blake2b(f"{self._seed}/{name}".encode(), digest_size=16).digest()
        for chunk in range(start // CHUNK_ELEMENTS, math.ceil((start + size) / CHUNK_ELEMENTS)):
            random = np.random.default_rng([int.from_bytes(digest), chunk])
            first = chunk * CHUNK_ELEMENTS
            drawn = parameter.draw(random, min(CHUNK_ELEMENTS, parameter.size - first))
            begin, end = max(start, first), min(start + size, first + len(drawn))
            values[begin - start : end - start] = drawn[begin - first : end - first]
        return torch.from_numpy(values)


@torch.no_grad()
def initialise(model: nn.Module, standard_deviation: float) -> None:
    """Fill a whole model with its initial weights, of the seed last given to `torch.manual_seed`. On the meta device
    there is nothing to fill."""
    weights = InitialWeights(model, standard_deviation, torch.initial_seed())
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            parameter.view(-1).copy_(weights(name, 0, parameter.numel()))


def _draw_of(module: nn.Module, name: str, standard_deviation: float) -> Draw:
    if name == "weight" and isinstance(module, nn.Linear | nn.Embedding):
        return lambda random, size: random.standard_normal(size, dtype=np.float32) * np.float32(standard_deviation)
    if isinstance(module, nn.Conv1d):
        bound = np.float32(1.0 / math.sqrt(module.in_channels * module.kernel_size[0]))
        return lambda random, size: (2.0 * random.random(size, dtype=np.float32) - 1.0) * bound
    if name == "weight" and isinstance(module, nn.LayerNorm):
        return lambda random, size: np.ones(size, dtype=np.float32)
    assert name == "bias", f"nothing says how {type(module).__name__}.{name} begins"
    return lambda random, size: np.zeros(size, dtype=np.float32)
