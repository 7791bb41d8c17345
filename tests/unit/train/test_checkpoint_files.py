"""Only whole checkpoints are ever chosen."""

from pathlib import Path

import pytest

from deberta_scale.train.checkpoint import (
    CheckpointError,
    checkpoint_dir,
    describe_files,
    newest_complete,
    prune,
    publish,
    sweep_unfinished,
    verify,
)


def make_checkpoint(run_dir: Path, step: int) -> Path:
    final = checkpoint_dir(run_dir, step)
    partial = final.with_name(final.name + ".partial")
    (partial / "engine").mkdir(parents=True)
    (partial / "engine" / "weights.pt").write_bytes(bytes(range(200)) * step)
    (partial / "state.json").write_text("{}")
    files = describe_files(partial, 0, 2) | describe_files(partial, 1, 2)
    publish(partial, final, {"step": step, "world_size": 2, "files": files})
    return final


def test_a_published_checkpoint_verifies_and_lists_every_file(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 3)
    assert set(verify(path)["files"]) == {"engine/weights.pt", "state.json"}
    assert not path.with_name(path.name + ".partial").exists()


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_damage_is_found_by_file_and_the_one_before_is_chosen(tmp_path: Path, damage: str) -> None:
    older, newer = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    weights = newer / "engine" / "weights.pt"
    name = "weights.pt"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "flip":
        weights.write_bytes(b"\xff" + weights.read_bytes()[1:])
    elif damage == "remove":
        weights.unlink()
    else:
        name = "manifest.json"
        (newer / name).write_text((newer / name).read_text().replace("2", "3"))
    with pytest.raises(CheckpointError, match=name):
        verify(newer)
    notes: list[str] = []
    assert newest_complete(tmp_path, notes.append) == older
    assert len(notes) == 1 and newer.name in notes[0] and name in notes[0]


def test_a_directory_without_marker_is_no_checkpoint(tmp_path: Path) -> None:
    older, newer = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    (newer / "COMPLETE").unlink()
    (tmp_path / "checkpoints" / "step-00000009.partial").mkdir()
    assert newest_complete(tmp_path) == older
    assert {p.name for p in sweep_unfinished(tmp_path)} == {newer.name, "step-00000009.partial"}
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [older.name]


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    paths = [make_checkpoint(tmp_path, step) for step in (1, 2, 10)]
    assert prune(tmp_path, keep=2) == [paths[0]]
    assert newest_complete(tmp_path) == paths[2]
    assert paths[1].exists() and not paths[0].exists()


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert newest_complete(tmp_path) is None
