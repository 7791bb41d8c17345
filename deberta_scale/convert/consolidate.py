"""A published checkpoint → the model's parameters in fp32, one at a time. Needs neither DeepSpeed nor ranks.

Where the values lie in `engine/` (as DeepSpeed 0.19 writes it, R ranks):
- stage 0: whole tensors, in `module` of `mp_rank_00_model_states.pt`.
- stages 1 and 2: the parameters of an optimizer group stand end to end in one fp32 vector, which is cut into R equal
  parts. Rank r's optimizer file holds part r of each group, `param_shapes` the order.
- stage 3: each parameter is cut into R parts of ceil(size / R) values, the last one padded. Rank r's optimizer file
  holds its part of all parameters end to end, over the groups.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deberta_scale.config_file import load
from deberta_scale.convert.source import Source, Weights
from deberta_scale.train.checkpoint import CheckpointError, newest_complete, read_manifest, verify

_DEEPSPEED_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""What an optimizer file names besides tensors and plain values. None of it is needed here."""


class _Unread:
    """Stands in for those classes while a file is unpickled: takes what they would take, and does nothing with it."""

    def __init__(self, *arguments: object) -> None:
        pass


class _Vector:
    """Tensors end to end, read as one vector; only the values asked for are touched."""

    def __init__(self, parts: list[torch.Tensor]) -> None:
        self.parts = [part.detach() for part in parts]  # some are saved as parameters
        self.size = sum(part.numel() for part in parts)

    def read(self, start: int, size: int) -> list[torch.Tensor]:
        """The pieces of `[start, start + size)`, as views."""
        pieces = []
        for part in self.parts:
            if start < part.numel() and size > 0:
                pieces.append(part[start : start + size])
                size -= pieces[-1].numel()
            start = max(0, start - part.numel())
        return pieces


def open_run(run_dir: Path, report: Callable[[str], None] = lambda message: None) -> Source:
    """The newest complete checkpoint of a run whose digests agree; `report` hears of those passed over.

    Raises CheckpointError when there is none, ConfigError when the run's config cannot be read.
    """
    newest = newest_complete(run_dir, report)
    if newest is None:
        raise CheckpointError(f"{run_dir / 'checkpoints'} holds no complete checkpoint whose digests agree")
    return _source(newest, read_manifest(newest))


def open_checkpoint(checkpoint: Path) -> Source:
    """A published checkpoint, of any ZeRO stage, precision and number of ranks, inside its run directory.

    Every file is checked against the manifest first. Raises CheckpointError when one is missing, damaged, or not what
    DeepSpeed writes.
    """
    return _source(checkpoint, verify(checkpoint))


def _source(checkpoint: Path, manifest: dict[str, Any]) -> Source:
    run_dir = checkpoint.resolve().parent.parent
    tokenizer = run_dir / "tokenizer"
    return Source(
        path=checkpoint,
        kind="checkpoint",
        config=load(run_dir / "config.yaml").model,
        weights=read_weights(checkpoint, manifest),
        tokenizer=tokenizer if tokenizer.is_dir() else None,
        facts={"step": manifest["step"], "run_dir": run_dir},
    )


def read_weights(checkpoint: Path, manifest: dict[str, Any]) -> Weights:
    """The weights of a checkpoint that was checked against its manifest. fp32 masters where the training had them."""
    files = checkpoint / "engine"
    stage, world_size = manifest["zero_stage"], manifest["world_size"]
    try:
        if stage == 0:
            shapes, read = _whole_tensors(files)
        elif stage in (1, 2):
            shapes, read = _groups_cut_by_rank(files, world_size)
        elif stage == 3:
            shapes, read = _parameters_cut_by_rank(files, world_size)
        else:
            raise CheckpointError(f"{checkpoint / 'manifest.json'}: zero_stage {stage} is none of 0, 1, 2, 3")
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{files}: not what DeepSpeed writes at ZeRO stage {stage} ({error!r})") from error
    return Weights(shapes, read)


_Layout = tuple[dict[str, tuple[int, ...]], Callable[[str], torch.Tensor]]


def _whole_tensors(files: Path) -> _Layout:
    saved: dict[str, torch.Tensor] = {}
    addresses = set()
    for name, tensor in _load(files / "mp_rank_00_model_states.pt")["module"].items():
        if tensor.data_ptr() not in addresses:  # else tied to an earlier one
            addresses.add(tensor.data_ptr())
            saved[name] = tensor.detach()
    return {name: tuple(t.shape) for name, t in saved.items()}, lambda name: saved[name].clone().float()


def _groups_cut_by_rank(files: Path, world_size: int) -> _Layout:
    model = _load(files / "mp_rank_00_model_states.pt")
    ranks = _load_optimizers(files, world_size)
    shapes: dict[str, tuple[int, ...]] = {}
    places: dict[str, tuple[_Vector, int]] = {}
    paddings = ranks[0].get("param_alignment_paddings")
    for number, group in enumerate(model["param_shapes"]):
        vector = _Vector([rank["single_partition_of_fp32_groups"][number] for rank in ranks])
        start = 0
        for index, (name, shape) in enumerate(group.items()):
            shapes[name], places[name] = tuple(shape), (vector, start)
            start += shape.numel() + (paddings[number][index] if paddings else 0)
        if start > vector.size:
            raise CheckpointError(f"{files}: group {number} has {vector.size} values, its parameters need {start}")

    def read(name: str) -> torch.Tensor:
        vector, start = places[name]
        shape = torch.Size(shapes[name])
        return torch.cat(vector.read(start, shape.numel())).view(shape).float()

    return shapes, read


def _parameters_cut_by_rank(files: Path, world_size: int) -> _Layout:
    model = _load(files / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    vectors = [_Vector(rank["fp32_flat_groups"]) for rank in _load_optimizers(files, world_size)]
    shapes: dict[str, tuple[int, ...]] = {}
    places: dict[str, tuple[int, int]] = {}
    start = 0
    for group in model["param_shapes"]:
        for name, shape in group.items():
            part_size = -(-shape.numel() // world_size)
            shapes[name], places[name] = tuple(shape), (start, part_size)
            start += part_size
    for rank, vector in enumerate(vectors):
        if vector.size != start:
            raise CheckpointError(f"{files}: rank {rank} has {vector.size} values, its parameters need {start}")

    def read(name: str) -> torch.Tensor:
        start, part_size = places[name]
        shape = torch.Size(shapes[name])
        pieces = [piece for vector in vectors for piece in vector.read(start, part_size)]
        whole = torch.empty(shape.numel())
        filled = 0
        for piece in pieces:  # not torch.cat: the padding of the last rank is dropped on the way, not by a second copy
            kept = piece[: shape.numel() - filled]
            whole[filled : filled + kept.numel()] = kept
            filled += kept.numel()
        return whole.view(shape)

    return shapes, read


def _load_optimizers(files: Path, world_size: int) -> list[dict[str, Any]]:
    names = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(world_size)]
    if (files / f"bf16_{names[0]}").exists():
        names = [f"bf16_{name}" for name in names]
    return [_load(files / name)["optimizer_state_dict"] for name in names]


def _load(path: Path) -> dict[str, Any]:
    """A file of the checkpoint, its tensors mapped from disk, not read. Code in it is never run."""
    try:
        with torch.serialization.safe_globals([(_Unread, name) for name in _DEEPSPEED_CLASSES]):
            content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: was the checkpoint copied from all hosts?") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    return content
