"""Parameters read from a checkpoint's files are, bit for bit, those the engine held when it saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deberta_scale.convert.consolidate import open_checkpoint, open_run, read_weights
from deberta_scale.convert.source import Weights
from deberta_scale.train import checkpoint
from deberta_scale.train.checkpoint import CheckpointError, newest_complete, verify
from tests.launching import start

WORKER = Path(__file__).parent / "consolidate_worker.py"
ONE_RANK = ["0-fp32"] + [f"{stage}-{precision}" for stage in (1, 2, 3) for precision in ("fp32", "bf16", "fp16")]
TWO_RANKS = ["0-fp32", "1-fp32", "1-bf16", "2-fp16", "3-fp32", "3-bf16"]
CASES = [(1, name) for name in ONE_RANK] + [(2, name) for name in TWO_RANKS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RANKS/STAGE-PRECISION/checkpoints/step-00000002 of real DeepSpeed engines."""
    directory = tmp_path_factory.mktemp("trained")
    worlds = [start(ranks, WORKER, directory / str(ranks), *names) for ranks, names in ((1, ONE_RANK), (2, TWO_RANKS))]
    for world in worlds:
        codes, outputs = world.wait()
        assert not any(codes), "\n".join(outputs)
    return directory


def weights_of(path: Path) -> Weights:
    """What `open_checkpoint` reads; the model trained here is none of ours and has no config.yaml."""
    return read_weights(path, verify(path))


@pytest.mark.parametrize(("ranks", "name"), CASES)
def test_values_are_those_of_the_engine(trained: Path, ranks: int, name: str) -> None:
    run_dir = trained / str(ranks) / name
    expected = load_file(run_dir / "expected.safetensors")

    weights = weights_of(checkpoint.checkpoint_dir(run_dir, 2))
    found = dict(weights)

    assert found.keys() == weights.shapes.keys() == expected.keys(), "the tied decoder comes once, as the embedding"
    for key, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
        assert weights.shapes[key] == tensor.shape
        assert torch.equal(tensor, expected[key]), key


def test_master_weights_are_finer_than_the_trained_16_bit_ones(trained: Path) -> None:
    tensors = dict(weights_of(checkpoint.checkpoint_dir(trained / "1" / "3-bf16", 2)))
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in tensors.values())


def copied(trained: Path, tmp_path: Path, name: str = "3-bf16") -> Path:
    shutil.copytree(trained / "2" / name, tmp_path / name)
    return checkpoint.checkpoint_dir(tmp_path / name, 2)


def test_a_damaged_file_is_named(trained: Path, tmp_path: Path) -> None:
    path = copied(trained, tmp_path)
    damaged = path / "engine" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank_1_mp_rank_00_optim_states.pt does not have the digest"):
        open_checkpoint(path)


def test_an_unfinished_checkpoint_is_refused(trained: Path, tmp_path: Path) -> None:
    path = copied(trained, tmp_path)
    (path / "COMPLETE").unlink()
    with pytest.raises(CheckpointError, match="no COMPLETE marker"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        open_run(path.parent.parent)


def republished(path: Path, **changes: object) -> Path:
    """The checkpoint again, with a manifest that fits what lies there now."""
    facts = json.loads((path / "manifest.json").read_text())
    for name in ("manifest.json", "COMPLETE"):
        (path / name).unlink()
    partial = path.rename(path.with_name("partial"))
    facts |= {"files": checkpoint.describe_files(partial, 0, 1), **changes}
    checkpoint.publish(partial, path, facts)
    return path


def test_a_rank_that_was_never_collected_is_missing(trained: Path, tmp_path: Path) -> None:
    path = copied(trained, tmp_path)
    (path / "engine" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"rank_1_mp_rank_00_optim_states.pt is missing"):
        weights_of(republished(path))


def test_a_manifest_of_another_stage_is_one_clear_message(trained: Path, tmp_path: Path) -> None:
    path = copied(trained, tmp_path, "1-bf16")
    with pytest.raises(CheckpointError, match=r"zero_pp_rank_0_mp_rank_00_model_states.pt is missing"):
        weights_of(republished(path, zero_stage=3))


def test_code_in_a_file_is_not_run(trained: Path, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "was run"),)

    path = copied(trained, tmp_path, "1-fp32")
    torch.save({"module": Malicious()}, path / "engine" / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        weights_of(republished(path))
    assert not (tmp_path / "was run").exists()


def test_the_newest_whole_checkpoint_is_taken(trained: Path, tmp_path: Path) -> None:
    older = copied(trained, tmp_path, "1-fp32")
    run_dir = older.parent.parent
    newer = checkpoint.checkpoint_dir(run_dir, 3)
    shutil.copytree(older, newer)
    (newer / "state.json").write_text("{}")
    passed_over: list[str] = []
    assert newest_complete(run_dir, passed_over.append) == older
    assert len(passed_over) == 1
    assert "step-00000003" in passed_over[0]
