"""Files of fragments: of everything that training changes, each rank writes the part it owns, and any number of ranks
reads what it needs.

`rank-NNNNN.safetensors` holds flat fp32 tensors `KIND/NAME`: of the parameter NAME (flattened, of the whole model) the
stretch that this rank owns. KIND is `weight` for the parameter itself, in fp32 also where training runs in 16 bits,
and the optimizer's own word for each of its moments (`exp_avg`, `exp_avg_sq`). The file's metadata tell:

- `format`, `world_size`: `FORMAT`, and how many such files belong together.
- `parameters`: by name the `shape` of the whole, the `start` of the stretch and the optimizer `step`s done.
- `digests`: by tensor a sum over its values and their positions; the digest of the whole is the sum of its stretches'.
- `counters`: a few numbers that are the same on all ranks.
"""

import functools
import json
import math
from collections.abc import KeysView
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch

FORMAT = "deberta-scale training state 1"
FILE_NAME = "rank-{rank:05d}.safetensors"
WEIGHT = "weight"
DIGEST_MODULUS = 2**64


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file."""


class Stretch(NamedTuple):
    """Where the values `[start, end)` of a flattened tensor lie."""

    start: int
    end: int
    path: Path


class EngineFiles:
    """The files of all ranks, checked against each other. Values stay on disk until they are read.

    Raises CheckpointError naming the file that is missing, cut short, or does not belong to the others.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of the whole parameters, by name."""
        self.steps: dict[str, int] = {}
        """Optimizer steps done, by parameter."""
        self.counters: dict[str, Any] = {}
        self._stretches: dict[str, list[Stretch]] = {}
        self._digests: dict[str, int] = {}
        self._open = functools.lru_cache(maxsize=32)(_open)
        self.world_size = int(_metadata(directory / FILE_NAME.format(rank=0))["world_size"])
        for rank in range(self.world_size):
            self._add(directory / FILE_NAME.format(rank=rank))
        for key, stretches in self._stretches.items():
            self._check_covered(key, sorted(stretches))

    @property
    def keys(self) -> KeysView[str]:
        """`KIND/NAME` of all tensors."""
        return self._stretches.keys()

    def digest(self, key: str) -> int:
        """Of the whole tensor, as it was when it was written."""
        return self._digests[key]

    def read_into(self, values: torch.Tensor, key: str, start: int) -> None:
        """Fill a flat tensor with the values from `start` on of the flattened whole."""
        end = start + values.numel()
        for stretch in self._stretches[key]:
            first, last = max(start, stretch.start), min(end, stretch.end)
            if first < last:
                stored = self._open(stretch.path).get_slice(key)
                values[first - start : last - start] = stored[first - stretch.start : last - stretch.start]

    def read_weight(self, name: str) -> torch.Tensor:
        """A whole parameter in its shape, fp32, in memory of its own."""
        values = torch.empty(math.prod(self.shapes[name]))
        self.read_into(values, f"{WEIGHT}/{name}", 0)
        return values.view(self.shapes[name])

    def _add(self, path: Path) -> None:
        metadata, stored = _metadata(path), self._open(path)
        parameters, digests = json.loads(metadata["parameters"]), json.loads(metadata["digests"])
        self.counters = json.loads(metadata["counters"])
        if int(metadata["world_size"]) != self.world_size:
            raise CheckpointError(f"{path} is of {metadata['world_size']} ranks, the first file of {self.world_size}")
        for name, facts in parameters.items():
            shape = tuple(facts["shape"])
            if self.shapes.setdefault(name, shape) != shape:
                raise CheckpointError(f"{path}: {name} has shape {shape}, elsewhere {self.shapes[name]}")
            self.steps[name] = max(self.steps.get(name, 0), facts["step"])
        for key in stored.keys():  # noqa: SIM118 - no mapping
            start = parameters[key.partition("/")[2]]["start"]
            (size,) = stored.get_slice(key).get_shape()
            self._stretches.setdefault(key, []).append(Stretch(start, start + size, path))
            self._digests[key] = (self._digests.get(key, 0) + int(digests[key], 16)) % DIGEST_MODULUS

    def _check_covered(self, key: str, stretches: list[Stretch]) -> None:
        known = 0
        size = math.prod(self.shapes[key.partition("/")[2]])
        for stretch in [*stretches, Stretch(size, size, self.directory)]:
            if stretch.start != known:
                raise CheckpointError(
                    f"{stretch.path}: the values of {key} go on at {stretch.start}, those before end at {known}; the"
                    " files are not of one checkpoint"
                )
            known = stretch.end


def _open(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: was the checkpoint copied from all hosts?") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None


def _metadata(path: Path) -> dict[str, str]:
    metadata = _open(path).metadata() or {}
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {metadata.get('format')!r}, this version reads {FORMAT!r}")
    return metadata
