"""Tensors as they lie in files, by the names they have there: safetensors or torch.save, whole or cut into shards.

Read one at a time, as fp32. Code in a file is never run.
"""

import json
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

from deberta_scale.convert.source import ConversionError, Weights

SAFETENSORS_FILE, BIN_FILE = "model.safetensors", "pytorch_model.bin"
_SAFETENSORS, _TORCH, _INDEX = ".safetensors", (".bin", ".pt", ".pth"), ".index.json"
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Stored:
    """The tensors of one file, or of the shards that one index names."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    """`float32`, `bfloat16`, ...; what is no floating point number may have any name."""
    values: Callable[[str], torch.Tensor]
    """A tensor as it lies in the file."""
    config: dict[str, Any] | None = None
    """What the official code may keep beside the tensors, under `config`."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor, fp32, in memory of its own. Raises ConversionError when its numbers are not floating point."""
        if self.dtypes[name] not in _FLOATS.values():
            raise ConversionError(
                f"{self.path}: {name} is stored as {self.dtypes[name]}; give a model stored as float32, float16 or"
                " bfloat16, not quantised"
            )
        return self.values(name).detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def find_weights(directory: Path) -> Path | None:
    """The file that holds a directory's weights: safetensors before pickles, of training checkpoints the latest."""
    for name in (SAFETENSORS_FILE, SAFETENSORS_FILE + _INDEX, BIN_FILE, BIN_FILE + _INDEX):
        if (directory / name).is_file():
            return directory / name
    steps = [
        (re.fullmatch(r"pytorch\.model-(\d+)\.bin", path.name), path) for path in directory.glob("pytorch.model-*")
    ]
    return max(((int(step[1]), path) for step, path in steps if step), default=(0, None))[1]


def is_weights_file(path: Path) -> bool:
    """Whether `open_stored` reads files of this name."""
    return path.name.endswith((_SAFETENSORS, *_TORCH, _INDEX))


def open_stored(path: Path) -> Stored:
    """Look into a file of tensors, or all files of an index. Raises ConversionError naming the one that is damaged,
    missing, or holds something else than tensors."""
    try:
        if path.name.endswith(_INDEX):
            return _open_shards(path)
        return _open_safetensors(path) if path.name.endswith(_SAFETENSORS) else _open_torch(path)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error.strerror or error})") from None


def _open_safetensors(path: Path) -> Stored:
    try:
        file = safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as error:
        raise ConversionError(f"{path}: not a whole safetensors file ({error}); copy it again") from None
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    dtypes = {name: _FLOATS.get(part.get_dtype(), part.get_dtype()) for name, part in slices.items()}
    return Stored(path, shapes, dtypes, file.get_tensor)


def _open_torch(path: Path) -> Stored:
    content = _load(path)
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: holds a {type(content).__name__}, not named tensors; save a state dict")
    config = content.pop("config", None)
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            inside = f"; save {path.name}[{name!r}] alone" if isinstance(value, dict) else ""
            raise ConversionError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor{inside}")
    return Stored(
        path,
        shapes={name: tuple(tensor.shape) for name, tensor in content.items()},
        dtypes={name: str(tensor.dtype).removeprefix("torch.") for name, tensor in content.items()},
        values=content.__getitem__,
        config=config if isinstance(config, dict) else None,
    )


def _load(path: Path) -> Any:
    """What torch.save wrote, its tensors mapped from disk."""
    try:
        is_zip = zipfile.is_zipfile(path)  # else saved by torch < 1.6, which cannot be mapped and is read whole
        if is_zip:
            _verify(path)
        return torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except (OSError, ConversionError):
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        found = re.search(r"GLOBAL:? ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and found:
            raise ConversionError(
                f"{path}: holds more than tensors: it names {found[1]}, and code in a file is never run; in the program"
                " that wrote it, save model.state_dict() alone"
            ) from None
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        if "Weights only" in reason:  # torch's advice to load without protection
            reason = "not a pickle of tensors"
        raise ConversionError(f"{path}: damaged, cut short, or not written by torch.save ({reason[:150]})") from None


def _verify(path: Path) -> None:
    """Compare the check sums in a zip archive, which torch does not when it maps one."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ConversionError(
            f"{path}: damaged, {damaged} in it does not have its check sum; copy it again (or save it with check sums,"
            " torch.serialization.set_crc32_options(True))"
        )


def _open_shards(index: Path) -> Stored:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConversionError(f"{index}: no index of shards; expected JSON with a weight_map") from None
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise ConversionError(f"{index}: names the shard {name}, which is not there; copy all files of the model")
    shards = {name: open_stored(index.parent / name) for name in names}
    for tensor, name in places.items():
        if tensor not in shards[name].shapes:
            raise ConversionError(f"{index.parent / name}: does not hold {tensor}, which {index.name} says it does")
    return Stored(
        path=index,
        shapes={tensor: shards[name].shapes[tensor] for tensor, name in places.items()},
        dtypes={tensor: shards[name].dtypes[tensor] for tensor, name in places.items()},
        values=lambda tensor: shards[places[tensor]].values(tensor),
    )


def write_safetensors(path: Path, weights: Weights) -> None:
    """All tensors in fp32, one of them in memory at a time.

    The format: size of the header, header with all places, then the values end to end.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, shape, start in laid_out(weights):
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, start + 4 * math.prod(shape)]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, tensor in weights:
            file.write(tensor.numpy().data)


def laid_out(weights: Weights) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(name, shape, first byte) of each tensor when their fp32 values stand end to end."""
    start = 0
    for name, shape in weights.shapes.items():
        yield name, shape, start
        start += 4 * math.prod(shape)
