"""Where DeepSpeed keeps what an optimizer updates: flat fp32 vectors, and which stretch of which parameter lies where.

The one place that knows the insides of its ZeRO stages (as of 0.19):

- stage 0: each parameter is a vector of its own, whole on every rank.
- stages 1 and 2: the parameters of an optimizer group stand end to end in one vector, cut into equal parts by rank.
- stage 3: each parameter is cut by rank; the parts of a sub-group of parameters stand end to end in one vector.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Piece:
    """A stretch of a flattened parameter, in a vector."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """In the flattened whole."""
    offset: int
    """In the vector."""
    size: int


@dataclass(frozen=True)
class Vector:
    """What the optimizer takes for one parameter."""

    master: torch.Tensor
    """fp32; its key in the optimizer's state. Empty while it lies on disk, see `in_memory`."""
    pieces: tuple[Piece, ...]
    """All that it holds, without padding."""
    owned: tuple[Piece, ...]
    """Those that no other rank counts as its own."""
    number: int
    """DeepSpeed's number of it."""
    on_disk: bool = False


def stretch_of(tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
    """A view of what `piece` is of the master or of a moment of its vector, [piece.size]."""
    return tensor.detach().view(-1)[piece.offset : piece.offset + piece.size]


def vectors_of(engine: Any) -> list[Vector]:
    """All vectors of this rank."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return [_whole(number, *item) for number, item in enumerate(names.items())]
    return _cut_by_parameter(engine.optimizer, names) if stage == 3 else _cut_by_group(engine.optimizer, names)


def _whole(number: int, parameter: torch.nn.Parameter, name: str) -> Vector:
    shape, size = tuple(parameter.shape), parameter.numel()
    share = -(-size // torch.distributed.get_world_size())
    start = min(size, torch.distributed.get_rank() * share)
    own = Piece(name, shape, start, start, min(share, size - start))
    return Vector(parameter, (Piece(name, shape, 0, 0, size),), (own,) if own.size else (), number)


def _cut_by_group(optimizer: Any, names: dict[torch.nn.Parameter, str]) -> list[Vector]:
    vectors = []
    masters = zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True)
    for number, (group, master) in enumerate(masters):
        pieces = []
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is not None:
                start, size = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
                offset = mapping.hp_fragment_address.start
                pieces.append(Piece(names[parameter], tuple(parameter.shape), start, offset, size))
        vectors.append(Vector(master, tuple(pieces), tuple(pieces), number))
    return vectors


def _cut_by_parameter(optimizer: Any, names: dict[torch.nn.Parameter, str]) -> list[Vector]:
    vectors, rank = [], torch.distributed.get_rank()
    masters = zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True)
    for number, (group, master) in enumerate(masters):
        pieces, offset = [], 0
        for parameter in group:
            share = parameter.partition_numel()
            start = rank * share
            size = min(share, parameter.ds_numel - start)  # the rest of the last shares is padding
            if size > 0:
                pieces.append(Piece(names[parameter], tuple(parameter.ds_shape), start, offset, size))
            offset += share
        on_disk = optimizer._swappable_optimizer_subgroup(number)
        vectors.append(Vector(master, tuple(pieces), tuple(pieces), number, on_disk))
    return vectors


@contextlib.contextmanager
def in_memory(engine: Any, vector: Vector, changed: bool) -> Iterator[None]:
    """Have a vector and its moments in memory; `changed`: one that lies on disk is written back afterwards."""
    if not vector.on_disk:
        yield
        return
    engine.optimizer._optimizer_states_and_gradient_swap_in(vector.number)
    yield
    if changed:
        engine.optimizer._optimizer_states_and_gradient_swap_out(vector.number)
    else:
        engine.optimizer._release_swap_buffers(vector.number)


def moments_of(engine: Any, vector: Vector) -> dict[str, torch.Tensor]:
    """The optimizer's tensors beside the master, by its own names; none before the first update."""
    state = engine.basic_optimizer.state.get(vector.master, {})
    return {kind: value for kind, value in state.items() if torch.is_tensor(value) and value.dim()}


def steps_of(engine: Any, vector: Vector) -> int:
    """Updates done, as the optimizer counts them."""
    return int(engine.basic_optimizer.state.get(vector.master, {}).get("step", 0))


def prepare_moments(engine: Any, vector: Vector, kinds: tuple[str, ...], step: int) -> None:
    """Have the optimizer hold zeros for these moments, as it makes them in its first update, and set its counter."""
    optimizer = engine.basic_optimizer
    state = optimizer.state[vector.master]
    for kind in kinds:
        if kind not in state:
            state[kind] = torch.empty_like(vector.master, requires_grad=False)
    for moment in moments_of(engine, vector).values():
        moment.zero_()
    if not state and not step:
        return  # the optimizer takes an empty state for one that it has yet to make
    # torch's own optimizers count in a tensor, DeepSpeed's in an integer.
    counts_in_a_tensor = isinstance(optimizer, torch.optim.AdamW)
    state["step"] = torch.tensor(float(step)) if counts_in_a_tensor else step


def count_updates(engine: Any, step: int) -> None:
    """Bring DeepSpeed's Adam on the CPU to where `step` updates would have brought it.

    It keeps powers of the betas, multiplied from update to update in single precision; computed anew they would differ
    in the last digits, and a run that goes on from the undisturbed one. The other optimizers compute them anew always.
    """
    compiled = getattr(engine.basic_optimizer, "ds_opt_adam", None)
    if compiled is None:
        return
    group, nothing = engine.basic_optimizer.param_groups[0], torch.zeros(1)
    settings = (0.0, *group["betas"], group["eps"], 0.0, group["bias_correction"])
    for number in range(1, step + 1):
        compiled.adam_update(engine.basic_optimizer.opt_id, number, *settings, nothing, nothing, nothing, nothing)


def update_trained_weights(engine: Any, vector: Vector) -> None:
    """Bring a changed master, in memory, to the parameters that the model computes with, as far as they are here."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer._reassign_or_swap_out_partitioned_parameters(vector.number)


def begin_update(engine: Any) -> None:
    """Before masters change: no rank keeps whole parameters that were gathered from the old ones."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.checkpoint_event_prologue()


def finish_update(engine: Any) -> None:
    """After all masters have changed, on all ranks together."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.checkpoint_event_epilogue()
    elif engine.zero_optimization_stage() > 0:
        engine.optimizer.update_lp_params()
