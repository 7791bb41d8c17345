"""Parameters are read from the files of any number of ranks as they were written; what is wrong with one is told."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deberta_scale.convert.consolidate import open_checkpoint, open_run, read_weights
from deberta_scale.train import checkpoint
from deberta_scale.train.checkpoint import newest_complete
from deberta_scale.train.fragments import CheckpointError
from tests.published import publish_again, publish_checkpoint

SHAPES = {"embedding.weight": (13, 5), "inner.weight": (7, 5), "inner.bias": (7,), "scale": (1,)}
"""No size divides by two, and the last is smaller than the number of ranks."""


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


@pytest.fixture
def path(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    return publish_checkpoint(tmp_path / "run", weights, ranks=2)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_tensor_is_put_together(tmp_path: Path, weights: dict[str, torch.Tensor], ranks: int) -> None:
    found = read_weights(publish_checkpoint(tmp_path, weights, ranks=ranks))
    assert found.shapes == SHAPES
    for name, tensor in found:
        assert tensor.dtype == torch.float32 and torch.equal(tensor, weights[name])
    first, second = found.read("scale"), found.read("scale")
    first.zero_()
    assert not torch.equal(first, second), "each call gives memory of its own"


def test_a_damaged_file_is_named(path: Path) -> None:
    damaged = path / "engine" / "rank-00001.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank-00001.safetensors does not have the digest"):
        open_checkpoint(path)


def test_an_unfinished_checkpoint_is_refused(path: Path) -> None:
    (path / "COMPLETE").unlink()
    with pytest.raises(CheckpointError, match="no COMPLETE marker"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        open_run(path.parent.parent)


def republished(path: Path) -> Path:
    """The checkpoint again, with a manifest that fits what lies there now."""
    facts = json.loads((path / "manifest.json").read_text())
    for name in ("manifest.json", "COMPLETE"):
        (path / name).unlink()
    return publish_again(path.rename(path.with_name("partial")), path, facts)


def test_a_rank_that_was_never_collected_is_missing(path: Path) -> None:
    (path / "engine" / "rank-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"rank-00001.safetensors is missing: was the checkpoint copied"):
        read_weights(republished(path))


def test_a_file_cut_short_is_named(path: Path) -> None:
    cut = path / "engine" / "rank-00001.safetensors"
    cut.write_bytes(cut.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"rank-00001.safetensors: not a whole safetensors file"):
        read_weights(republished(path))


def test_another_file_of_tensors_is_no_checkpoint(path: Path) -> None:
    save_file({"weight": torch.ones(3)}, path / "engine" / "rank-00000.safetensors")
    with pytest.raises(CheckpointError, match=r"rank-00000.safetensors has format None, this version reads 'deberta-"):
        read_weights(republished(path))


def test_files_of_two_checkpoints_are_told_apart(path: Path, tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    other = publish_checkpoint(tmp_path / "other", weights, ranks=3)
    shutil.copy(other / "engine" / "rank-00001.safetensors", path / "engine")
    with pytest.raises(CheckpointError, match=r"rank-00001.safetensors is of 3 ranks, the first file of 2"):
        read_weights(republished(path))
    shutil.copy(path / "engine" / "rank-00000.safetensors", path / "engine" / "rank-00001.safetensors")
    with pytest.raises(CheckpointError, match=r"rank-00001.safetensors: the values of weight/embedding.weight go on"):
        read_weights(republished(path))


def test_the_newest_whole_checkpoint_is_taken(path: Path) -> None:
    run_dir = path.parent.parent
    newer = checkpoint.checkpoint_dir(run_dir, 6)
    shutil.copytree(path, newer)
    (newer / "engine" / "rank-00000.safetensors").write_bytes(b"")
    passed_over: list[str] = []
    assert newest_complete(run_dir, passed_over.append) == path
    assert len(passed_over) == 1
    assert "step-00000006" in passed_over[0]


def anonymous_bytes() -> int:
    """Of this process's memory, what is not a file's pages."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    size, tensors = 1 << 20, 24
    path = publish_checkpoint(tmp_path, {f"layer.{number}": torch.ones(size) for number in range(tensors)}, ranks=2)
    weights = read_weights(path)
    before, highest = anonymous_bytes(), 0
    for _, tensor in weights:
        highest = max(highest, anonymous_bytes() - before)
        assert tensor.sum() == size
    assert highest < tensors * 4 * size / 2, "the allocator may keep some of what is given back"
