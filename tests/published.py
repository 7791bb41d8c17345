"""Checkpoints of models that nobody trained, for tests of what is read from them."""

from collections.abc import Mapping
from pathlib import Path

import torch

from deberta_scale.durable import digest_of
from deberta_scale.train import checkpoint
from deberta_scale.train.engine_state import EngineState, Fragment
from deberta_scale.train.engine_vectors import Piece
from deberta_scale.train.fragments import FILE_NAME


def write_engine_files(directory: Path, weights: Mapping[str, torch.Tensor], ranks: int) -> None:
    """What so many ranks write of a model before its first update: of each tensor an equal part each."""
    directory.mkdir(parents=True)
    for rank in range(ranks):
        fragments, values = [], []
        for name, tensor in weights.items():
            share = -(-tensor.numel() // ranks)
            part = tensor.flatten()[rank * share : (rank + 1) * share]
            if part.numel():
                fragments.append(Fragment("weight", Piece(name, tuple(tensor.shape), rank * share, 0, len(part)), 0))
                values.append(part)
        counters = {"global_steps": 0, "skipped_steps": 0}
        state = EngineState(fragments, lambda values=values: values, counters, ranks, is_copy=True)
        state.write(directory / FILE_NAME.format(rank=rank))


def publish_checkpoint(run_dir: Path, weights: Mapping[str, torch.Tensor], step: int = 5, ranks: int = 1) -> Path:
    """A complete checkpoint of `run_dir`, but for what only training reads."""
    partial = run_dir / "checkpoints" / "partial"
    write_engine_files(partial / "engine", weights, ranks)
    return publish_again(partial, checkpoint.checkpoint_dir(run_dir, step), {"step": step, "world_size": ranks})


def publish_again(partial: Path, final: Path, facts: dict[str, object]) -> Path:
    """Publish what lies in `partial`, whatever it is."""
    checkpoint.publish(partial, final, {**facts, "files": describe_files(partial)})
    return final


def describe_files(directory: Path) -> dict[str, dict[str, object]]:
    """Of all files as they are now, what the ranks would have told of them."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "blake2b": digest_of(path)} for path in paths
    }
