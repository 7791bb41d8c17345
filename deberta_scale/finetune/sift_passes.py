"""What a forward pass of SiFT goes through at the embeddings: hooks that are there for that pass only.

Shape letters: E width of the embeddings.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from deberta_scale.config_sift import SiftConfig

EPSILON = 1e-7
"""Added to the variance of an embedding, as in the LayerNorms of DeBERTa."""


def modules_to_perturb(model: nn.Module, endings: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """The modules of a model with such names, by name. Raises ValueError when there is none for an ending."""
    named = {name: module for name, module in model.named_modules() if name}

    def ending_in(ending: str) -> dict[str, nn.Module]:
        return {name: module for name, module in named.items() if f".{name}".endswith(f".{ending}")}

    if not endings:
        found = ending_in("embeddings.LayerNorm") or ending_in("word_embedding")
        if found:
            return found
    missing = [ending for ending in endings if not ending_in(ending)]
    if missing or not endings:
        wanted = missing[0] if missing else "embeddings.LayerNorm or word_embedding"
        near = [name for name in named if "emb" in name.lower()] or list(named)
        raise ValueError(
            f"{type(model).__name__} has no module whose name ends in {wanted}; name those to perturb in"
            f" sift.modules, of for instance {', '.join(near[:8])}"
        )
    return {name: module for ending in endings for name, module in ending_in(ending).items()}


class CleanPass:
    """What hooked modules do in a pass: here, nothing but that they were called is noted. Not so in the released code,
    which normalises in this pass too."""

    def __init__(self, config: SiftConfig) -> None:
        self._config = config
        self.num_calls = 0

    def of_input(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._called(module, arguments[0]), *arguments[1:])

    def of_output(self, module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return self._called(module, output)

    def _called(self, module: nn.Module, embedded: torch.Tensor) -> torch.Tensor:
        if getattr(module, "_is_replica", False):
            raise ValueError(
                "SiFT does not work inside nn.DataParallel, whose threads run one model at once; start one process per"
                " GPU (torchrun, deepspeed)"
            )
        self.num_calls += 1
        return self._changed(embedded)

    def _changed(self, embedded: torch.Tensor) -> torch.Tensor:
        return _normalised(embedded).to(embedded.dtype) if self._config.compat == "official" else embedded


class PerturbedPass(CleanPass):
    """What is added in one pass: one tensor for each call of a hooked module, in the order of the calls, which is that
    of every pass of a batch. Without `deltas` given they are drawn as the calls come."""

    def __init__(self, config: SiftConfig, seed: int, deltas: list[torch.Tensor] | None = None) -> None:
        super().__init__(config)
        self.deltas: list[torch.Tensor] = deltas or []
        self._draws = deltas is None
        self._seed = seed

    def _changed(self, embedded: torch.Tensor) -> torch.Tensor:
        """[..., E] → [..., E]. Computed in fp32: a step may be less than a digit of bf16."""
        number = self.num_calls - 1
        if self._draws:
            self.deltas.append(self.start(embedded, number).requires_grad_())
        delta, wide = self.deltas[number], embedded.float()
        if self._config.compat == "official":
            return (_normalised(wide) + delta).to(embedded.dtype)
        deviation = (wide.var(-1, unbiased=False, keepdim=True) + EPSILON).sqrt()
        return (wide + deviation * delta).to(embedded.dtype)

    def start(self, like: torch.Tensor, number: int = 0) -> torch.Tensor:
        """The random start of the call of this number, of the shape of `like`."""
        source = torch.Generator(like.device).manual_seed(self._seed + number)
        deviation = self._config.initial_noise
        drawn = torch.randn(like.shape, generator=source, device=like.device) * deviation
        if self._config.compat == "official":
            return drawn.clamp(-2 * deviation, 2 * deviation)
        return into_ball(drawn, self._config)


@contextlib.contextmanager
def hooked(modules: dict[str, nn.Module], one_pass: CleanPass) -> Iterator[None]:
    """Let the forward pass inside go through `one_pass`. Raises ValueError when it went past it."""
    handles = [
        module.register_forward_hook(one_pass.of_output)
        if isinstance(module, nn.Embedding)
        else module.register_forward_pre_hook(one_pass.of_input)
        for module in modules.values()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if not one_pass.num_calls:
        raise ValueError(
            f"SiFT: the forward pass called none of {', '.join(modules)}; a model that is compiled, or gets its"
            " embeddings from outside, cannot be perturbed there"
        )


def _normalised(embedded: torch.Tensor) -> torch.Tensor:
    return nn.functional.layer_norm(embedded.float(), embedded.shape[-1:], eps=EPSILON)


class RandomState:
    """Of the CPU and of the GPUs of a model: what dropout can be made to go on from again."""

    def __init__(self, model: nn.Module) -> None:
        devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
        self._of_cpu = torch.get_rng_state()
        self._of_devices = {device: torch.cuda.get_rng_state(device) for device in devices}

    def restore(self) -> None:
        torch.set_rng_state(self._of_cpu)
        for device, state in self._of_devices.items():
            torch.cuda.set_rng_state(state, device)


def into_ball(delta: torch.Tensor, config: SiftConfig) -> torch.Tensor:
    """The nearest perturbation in the ball, for each token."""
    if config.radius is None:
        return delta
    if config.ball == "inf":
        return delta.clamp(-config.radius, config.radius)
    length = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
    return delta * (config.radius / length.clamp(min=config.radius))
