"""What an engine is given back is what was written, whoever wrote it: other ranks, another stage, another precision."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deberta_scale.train.fragment_digest import digest_of_values
from deberta_scale.train.fragments import DIGEST_MODULUS, FILE_NAME, EngineFiles
from tests.launching import start
from tests.published import write_engine_files

WORKER = Path(__file__).parent / "engine_state_worker.py"
UNTRAINED = ["0-fp32-untrained", "2-bf16-untrained", "3-fp16-untrained"]
TRAINED = {
    1: ["0-fp32", "1-bf16", "2-fp32", "3-fp16", "1-bf16-cpu", "3-fp32-cpu", "3-bf16-disk"],
    2: ["0-fp32", "1-fp32", "1-fp16", "2-bf16", "3-fp32", "3-bf16", "3-fp16", "3-bf16-disk"],
    4: ["3-fp32"],
}
CASES = [(ranks, name) for ranks, names in TRAINED.items() for name in names]

SOURCES = [(1, "2-fp32"), (2, "0-fp32"), (2, "3-bf16"), (4, "3-fp32")]
TARGETS = {1: ["0-fp32", "3-fp32"], 2: ["2-fp32", "3-bf16"], 4: ["0-fp32", "1-fp32"]}
MOVES = [(*source, ranks, target) for source in SOURCES for ranks, targets in TARGETS.items() for target in targets]


def run(ranks: int, out: Path, *arguments: str) -> None:
    codes, outputs = start(ranks, WORKER, out, *arguments).wait()
    assert not any(codes), outputs[0][-3000:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RANKS/STAGE-PRECISION as the worker's `train` leaves it."""
    out = tmp_path_factory.mktemp("trained")
    for ranks, names in TRAINED.items():
        run(ranks, out / str(ranks), "train", *names, *(UNTRAINED if ranks == 2 else []))
    return out


@pytest.fixture(scope="module")
def moved(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RANKS/FROM-RANKS-STAGE-PRECISION-to-STAGE-PRECISION as the worker's `move` leaves it."""
    out = tmp_path_factory.mktemp("moved")
    for ranks, targets in TARGETS.items():
        pairs = [f"{trained / str(given) / name}={target}" for given, name in SOURCES for target in targets]
        run(ranks, out / str(ranks), "move", *pairs)
    return out


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def values_of(files: EngineFiles) -> dict[str, torch.Tensor]:
    found = {}
    for key in files.keys:
        shape = files.shapes[key.partition("/")[2]]
        found[key] = torch.empty(int(np.prod(shape)))
        files.read_into(found[key], key, 0)
        found[key] = found[key].view(shape)
    return found


def digests_of(directory: Path) -> dict[str, int]:
    files = EngineFiles(directory)
    return {key: files.digest(key) for key in files.keys}


@pytest.mark.parametrize(("ranks", "name"), CASES)
def test_what_is_written_is_what_deepspeed_holds(trained: Path, ranks: int, name: str) -> None:
    directory = trained / str(ranks) / name
    expected = load_file(directory / "expected.safetensors")
    files = EngineFiles(directory / "engine")
    found = values_of(files)
    assert found.keys() == expected.keys()
    assert not any(name.startswith("decoder") for name in files.shapes), "the tied decoder comes once, as the embedding"
    for key, tensor in found.items():
        assert torch.equal(tensor, expected[key]), key
        assert files.digest(key) == digest_of_values(tensor.flatten(), 0)
    sizes = [path.stat().st_size for path in sorted((directory / "engine").iterdir())]
    assert len(sizes) == ranks
    values = sum(4 * tensor.numel() for tensor in found.values())
    assert sum(sizes) - values < ranks * 8192, "padding is not written, and nothing is written twice"


@pytest.mark.parametrize(("ranks", "name"), [*CASES, *((2, name) for name in UNTRAINED)])
def test_a_restored_engine_goes_on_bit_for_bit(trained: Path, ranks: int, name: str) -> None:
    """R16."""
    directory = trained / str(ranks) / name
    losses = json.loads((directory / "losses.json").read_text())
    assert losses["resumed"] == losses["undisturbed"]
    assert contents(directory / "again") == contents(directory / "engine")
    assert contents(directory / "resumed") == contents(directory / "final")
    assert contents(directory / "repeated") == contents(directory / "final")
    assert contents(directory / "final") != contents(directory / "engine")


def test_masters_are_finer_than_the_trained_16_bit_weights(trained: Path) -> None:
    found = values_of(EngineFiles(trained / "2" / "3-bf16" / "engine"))
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in found.values())


def test_the_loss_scale_goes_along(trained: Path) -> None:
    counters = [EngineFiles(trained / "2" / "3-fp16" / name).counters for name in ("engine", "resumed", "final")]
    assert counters[0]["skipped_steps"] > 0, "the first scales were too large"
    assert counters[1] == counters[2] != counters[0]
    assert counters[0]["loss_scaler"]["cur_scale"] < 2.0**30


@pytest.mark.parametrize(("given", "name", "ranks", "target"), MOVES)
def test_any_ranks_at_any_stage_take_it_over(
    trained: Path, moved: Path, given: int, name: str, ranks: int, target: str
) -> None:
    """R22."""
    source, directory = trained / str(given) / name, moved / str(ranks) / f"{given}-{name}-to-{target}"
    assert len(contents(directory / "engine")) == ranks
    assert digests_of(directory / "engine") == digests_of(source / "engine")
    found, expected = (values_of(EngineFiles(path / "engine")) for path in (directory, source))
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
    undisturbed = json.loads((source / "losses.json").read_text())["undisturbed"]
    tolerance = 1e-6 if name.endswith("fp32") and target.endswith("fp32") else 1e-2
    assert json.loads((directory / "losses.json").read_text()) == pytest.approx(undisturbed, rel=tolerance)


def test_a_restore_that_went_wrong_is_refused_on_all_ranks(trained: Path, tmp_path: Path) -> None:
    """R22."""
    good = trained / "2" / "3-bf16" / "engine"
    missing, changed, another = (tmp_path / name for name in ("missing", "changed", "another"))
    for copy in (missing, changed):
        shutil.copytree(good, copy)
    (missing / FILE_NAME.format(rank=1)).unlink()
    path = changed / FILE_NAME.format(rank=1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    write_engine_files(another, {"embedding.weight": torch.ones(13, 6)}, ranks=1)

    run(2, tmp_path / "out", "refuse", str(missing), str(changed), str(another), str(good))

    for rank in range(2):
        messages = json.loads((tmp_path / "out" / f"rank-{rank}.json").read_text())
        assert len(messages) == 3, "the good one is taken"
        assert "rank-00001.safetensors is missing" in messages[0]
        assert "are not in the engine what they were when the checkpoint was written" in messages[1]
        assert "embedding.weight has shape (13, 6), the model (13, 5)" in messages[2]


def test_a_digest_is_the_sum_of_its_parts_and_sees_every_bit() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    whole = digest_of_values(values, 0)
    for cut in (1, 500, 999):
        parts = digest_of_values(values[:cut], 0) + digest_of_values(values[cut:], cut)
        assert parts % DIGEST_MODULUS == whole
    assert digest_of_values(values, 1) != whole
    swapped = values[torch.tensor([1, 0, *range(2, 1000)])]
    changed = values.clone()
    changed.view(torch.int32)[7] ^= 1
    assert len({whole, digest_of_values(swapped, 0), digest_of_values(changed, 0)}) == 3
