"""All that training changes in an engine, to and from files of fragments: masters, moments and a few counters.

What is written does not depend on how the engine is spread, so that any number of ranks at any ZeRO stage goes on with
it. Parameters in 16 bits are not written: they are the rounded masters.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deberta_scale.durable import write_described
from deberta_scale.train import distributed
from deberta_scale.train.engine_vectors import (
    Piece,
    Vector,
    begin_update,
    count_updates,
    finish_update,
    in_memory,
    moments_of,
    prepare_moments,
    steps_of,
    stretch_of,
    update_trained_weights,
    vectors_of,
)
from deberta_scale.train.fragment_digest import digest_of_values
from deberta_scale.train.fragments import FILE_NAME, FORMAT, WEIGHT, CheckpointError, EngineFiles

__all__ = ["FILE_NAME", "EngineState", "Fragment", "copy_state", "restore_state"]

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Fragment:
    """A stretch of a parameter's weight or moment: a tensor of the file."""

    kind: str
    piece: Piece
    step: int
    """Optimizer steps done."""

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.piece.name}"

    @property
    def num_bytes(self) -> int:
        return 4 * self.piece.size


@dataclass(frozen=True)
class EngineState:
    """This rank's part of all that training changes."""

    fragments: list[Fragment]
    values: Callable[[], Iterable[torch.Tensor]]
    """Flat fp32 tensors, one for each fragment."""
    counters: dict[str, Any]
    world_size: int
    is_copy: bool
    """Whether later steps leave it alone. A state that lies on disk, or that memory has no room for, is not copied: it
    is read while it is written, and the engine must not be used meanwhile."""

    @property
    def num_bytes(self) -> int:
        """Of the values; the file is longer by its header."""
        return sum(fragment.num_bytes for fragment in self.fragments)

    def write(self, path: Path) -> dict[str, Any]:
        """One safetensors file, see `train.fragments`, forced to disk. Written from front to back without another copy
        in memory; the values are asked for twice, since their digests come first. Returns as `write_described`."""
        return write_described(path, self._parts())

    def _parts(self) -> Iterator[bytes | memoryview]:
        digests = {
            fragment.key: f"{digest_of_values(values, fragment.piece.start):016x}"
            for fragment, values in zip(self.fragments, self._on_host(), strict=True)
        }
        yield self._header(digests)
        for values in self._on_host():
            yield values.numpy().data

    def _on_host(self) -> Iterator[torch.Tensor]:
        return (values.cpu() for values in self.values())  # those that are not copied may be anywhere

    def _header(self, digests: dict[str, str]) -> bytes:
        parameters = {
            f.piece.name: {"shape": f.piece.shape, "start": f.piece.start, "step": f.step} for f in self.fragments
        }
        header: dict[str, Any] = {
            "__metadata__": {
                "format": FORMAT,
                "world_size": str(self.world_size),
                "parameters": json.dumps(parameters),
                "digests": json.dumps(digests),
                "counters": json.dumps(self.counters),
            }
        }
        start = 0
        for fragment in self.fragments:
            end = start + fragment.num_bytes
            header[fragment.key] = {"dtype": "F32", "shape": [fragment.piece.size], "data_offsets": [start, end]}
            start = end
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        return struct.pack("<Q", len(encoded)) + encoded


def copy_state(engine: Any, most_bytes: float = math.inf) -> EngineState:
    """This rank's part, between two steps. Copied to host memory, unless that takes more than `most_bytes` or it lies
    on disk (see `is_copy`)."""
    vectors = vectors_of(engine)
    fragments = [fragment for vector in vectors for fragment in _fragments(engine, vector)]
    fits = sum(fragment.num_bytes for fragment in fragments) <= most_bytes
    is_copy = fits and not any(vector.on_disk for vector in vectors)
    copies = [values.to("cpu", copy=True) for _, values in _owned(engine, vectors)] if is_copy else []
    return EngineState(
        fragments=fragments,
        values=(lambda: copies) if is_copy else (lambda: (values for _, values in _owned(engine, vectors))),
        counters=_counters(engine),
        world_size=torch.distributed.get_world_size(),
        is_copy=is_copy,
    )


def restore_state(engine: Any, directory: Path) -> None:
    """Put back what any number of ranks wrote into `directory`, at whatever stage; on all ranks together.

    Each rank reads the stretches it holds. Afterwards the digests of what the engine holds are compared with those
    in the files. Raises ValueError on all ranks when a file is missing or damaged, when the files are of another
    model, or when the digests differ.
    """
    vectors = vectors_of(engine)
    files = distributed.together(lambda: _open_checked(vectors, directory))
    begin_update(engine)
    distributed.together(lambda: _fill(engine, vectors, files))
    finish_update(engine)
    _set_counters(engine, files.counters)
    _compare_digests(engine, vectors, files)


def _fragments(engine: Any, vector: Vector) -> list[Fragment]:
    step, kinds = steps_of(engine, vector), (WEIGHT, *moments_of(engine, vector))
    return [Fragment(kind, piece, step) for piece in vector.owned for kind in kinds]


def _owned(engine: Any, vectors: list[Vector]) -> Iterator[tuple[Fragment, torch.Tensor]]:
    """What this rank owns, vector by vector; values are views, valid until the next is asked for."""
    for vector in vectors:
        with in_memory(engine, vector, changed=False):
            tensors = {WEIGHT: vector.master, **moments_of(engine, vector)}
            for fragment in _fragments(engine, vector):
                yield fragment, stretch_of(tensors[fragment.kind], fragment.piece)


def _open_checked(vectors: list[Vector], directory: Path) -> EngineFiles:
    files = EngineFiles(directory)
    for vector in vectors:
        for piece in vector.pieces:
            if files.shapes.get(piece.name) != piece.shape:
                raise CheckpointError(
                    f"{directory}: {piece.name} has shape {files.shapes.get(piece.name)}, the model {piece.shape}"
                )
    return files


def _fill(engine: Any, vectors: list[Vector], files: EngineFiles) -> None:
    kinds = dict.fromkeys(key.partition("/")[0] for key in files.keys)
    moments = tuple(kind for kind in kinds if kind != WEIGHT)
    for vector in vectors:
        step = max((files.steps[piece.name] for piece in vector.pieces), default=0)
        with in_memory(engine, vector, changed=True):
            prepare_moments(engine, vector, moments if step else (), step)
            for kind, tensor in {WEIGHT: vector.master, **moments_of(engine, vector)}.items():
                for piece in vector.pieces:
                    if f"{kind}/{piece.name}" in files.keys:
                        files.read_into(stretch_of(tensor, piece), f"{kind}/{piece.name}", piece.start)
            update_trained_weights(engine, vector)
    count_updates(engine, max(files.steps.values()))


def _compare_digests(engine: Any, vectors: list[Vector], files: EngineFiles) -> None:
    places = {key: place for place, key in enumerate(files.keys)}
    found = np.zeros(len(places), dtype=np.uint64)
    for fragment, values in _owned(engine, vectors):
        if fragment.key in places:
            found[places[fragment.key]] += np.uint64(digest_of_values(values.cpu(), fragment.piece.start))
    sums = np.stack(distributed.gather_objects(found)).sum(axis=0, dtype=np.uint64)
    wrong = [key for key, place in places.items() if int(sums[place]) != files.digest(key)]
    if wrong:
        raise distributed.AgreedError(
            f"{files.directory}: {wrong[0]} and {len(wrong) - 1} other tensors of {len(places)} are not in the engine"
            " what they were when the checkpoint was written; nothing was trained"
        )


def _counters(engine: Any) -> dict[str, Any]:
    counters: dict[str, Any] = {"global_steps": engine.global_steps, "skipped_steps": engine.skipped_steps}
    scaler = _loss_scaler(engine)
    if scaler is not None:
        counters["loss_scaler"] = {name: getattr(scaler, name) for name in _SCALER_FIELDS}
    return counters


def _set_counters(engine: Any, counters: dict[str, Any]) -> None:
    engine.global_steps, engine.skipped_steps = counters["global_steps"], counters["skipped_steps"]
    # Counted in micro-batches and samples of this run, whatever they were before.
    engine.micro_steps = engine.global_steps * engine.gradient_accumulation_steps()
    engine.global_samples = engine.global_steps * engine.train_batch_size()
    scaler = _loss_scaler(engine)
    if scaler is not None:
        for name, value in counters.get("loss_scaler", {}).items():
            setattr(scaler, name, value)


def _loss_scaler(engine: Any) -> Any:
    """The loss scaler of fp16; None in other precisions, where there is nothing to scale."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return scaler if getattr(scaler, "dynamic", False) else None
