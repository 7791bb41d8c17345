"""Run by test_construction.py in every rank: build engines, and tell what they hold and what it took to build them.

Usage: construction_worker.py TASK RESULT CONFIG -- [key=value ...] -- ... Each `--` group is one engine; rank 0 writes
the results as JSON.
"""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deberta_scale.config import Config
from deberta_scale.model.pretraining import PretrainingModel
from deberta_scale.train import distributed
from deberta_scale.train import engine as engines
from deberta_scale.train.engine_json import deepspeed_json
from deberta_scale.train.engine_state import copy_state
from deberta_scale.train.fragment_digest import digest_of_values
from deberta_scale.train.initial_weights import initial_weights, set_weights
from deberta_scale.train.launch_environment import Launch
from tests.working import run_groups


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made while it is on and not freed yet."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        older = {storage._cdata for storage in storages_of((args, kwargs))}
        for storage in storages_of(result):
            if storage._cdata not in older:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, num_bytes: int) -> None:
        self._seen.discard(key)
        self.now -= num_bytes


def storages_of(tree: Any) -> list[torch.UntypedStorage]:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if tensor.device.type != "meta"]


def model_on_meta(config: Config) -> PretrainingModel:
    with torch.device("meta"):
        return PretrainingModel(config.model)


def whole_weights(config: Config) -> dict[str, torch.Tensor]:
    torch.manual_seed(config.seed)
    return dict(PretrainingModel(config.model).named_parameters())


def build(config: Config, launch: Launch, device: torch.device) -> dict[str, Any]:
    """How the engine's weights compare with those of the model built whole."""
    whole = whole_weights(config)
    model = model_on_meta(config)
    weights, _ = initial_weights(config, model, None)
    engine = engines.build_engine(config, model, launch, device)
    set_weights(engine, weights)
    expected = {name: digest_of_values(value.detach().flatten(), 0) for name, value in whole.items()}
    wrong = [name for name, digest in digests_of_masters(engine).items() if digest != expected.pop(name)]
    with gathered(engine):
        trained = {name: value.detach().clone() for name, value in engine.module.named_parameters()}
    rounded = [name for name, value in trained.items() if not torch.equal(value, whole[name].to(value.dtype))]
    return {"wrong": wrong, "missing": list(expected), "rounded": rounded}


def digests_of_masters(engine: Any) -> dict[str, int]:
    """Of each whole fp32 parameter: the sum of its stretches' over all ranks."""
    state, digests = copy_state(engine), {}
    for fragment, values in zip(state.fragments, state.values(), strict=True):
        digests[fragment.piece.name] = digest_of_values(values, fragment.piece.start)
    sums: dict[str, int] = {}
    for of_rank in distributed.gather_objects(digests):
        for name, digest in of_rank.items():
            sums[name] = (sums.get(name, 0) + digest) % 2**64
    return sums


def gathered(engine: Any) -> contextlib.AbstractContextManager[Any]:
    import deepspeed

    parameters = list(engine.module.parameters())
    return deepspeed.zero.GatheredParameters(parameters, enabled=engine.zero_optimization_stage() == 3)


def peaks(config: Config, launch: Launch, device: torch.device) -> dict[str, Any]:
    """Bytes that live at once while parameters are given memory; the values asked for at once when they are filled."""
    model = model_on_meta(config)
    weights, _ = initial_weights(config, model, None)
    generated = deepspeed_json(config, launch.world_size, on_gpu=False)
    with LiveBytes() as materialising:
        engines.materialise(model, generated, device, torch.bfloat16)
    held = sum(parameter.ds_tensor.nbytes for parameter in model.parameters())
    engine = engines.build_engine(config, model_on_meta(config), launch, device)
    asked_for: list[int] = []

    def counted(name: str, start: int, size: int) -> torch.Tensor:
        asked_for.append(size)
        return weights(name, start, size)

    set_weights(engine, counted)
    return {"materialising": materialising.peak, "held": held, "filled": sum(asked_for), "at_once": max(asked_for)}


TASKS: dict[str, Callable[..., Any]] = {"build": build, "peaks": peaks}
run_groups(lambda task, *rest: TASKS[task](*rest))
