"""Only whole checkpoints are ever chosen, and only superseded ones removed."""

import shutil
from pathlib import Path

import pytest

from deberta_scale.config import Config, ConfigError
from deberta_scale.config_file import load
from deberta_scale.durable import digest_of_bytes
from deberta_scale.train import checkpoint
from deberta_scale.train.checkpoint import (
    CheckpointError,
    checkpoint_dir,
    choose,
    newest_complete,
    prune,
    publish,
    sweep_unfinished,
    verify,
)
from tests.published import describe_files


def write_aside(run_dir: Path, step: int, resume: str = "auto") -> tuple[Path, dict[str, object]]:
    """A directory to be published, and its manifest."""
    final = checkpoint_dir(run_dir, step)
    partial = final.with_name(final.name + ".partial")
    (partial / "engine").mkdir(parents=True)
    for rank in (0, 1):
        (partial / "engine" / f"rank-{rank:05d}.safetensors").write_bytes(bytes(range(200)) * step)
    (partial / "state.json").write_text("{}")
    return partial, {"step": step, "world_size": 2, "resume": resume, "files": describe_files(partial)}


def make_checkpoint(run_dir: Path, step: int, resume: str = "auto") -> Path:
    final = checkpoint_dir(run_dir, step)
    partial, manifest = write_aside(run_dir, step, resume)
    publish(partial, final, manifest)
    return final


def config_of(run_dir: Path, small_config: str, resume: str) -> Config:
    path = run_dir / "config.yaml"
    path.write_text(small_config)
    return load(path, [f"run_dir={run_dir}", f"resume={resume}"])


def test_a_published_checkpoint_verifies_and_lists_every_file(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 3)
    ranks = {f"engine/rank-0000{rank}.safetensors" for rank in (0, 1)}
    assert set(verify(path)["files"]) == ranks | {"state.json"}
    assert not path.with_name(path.name + ".partial").exists()


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "unreadable", "manifest", "marker", "cut manifest"])
def test_damage_is_found_by_file_and_the_one_before_is_chosen(tmp_path: Path, small_config: str, damage: str) -> None:
    """R19: `auto` falls back and says so, an explicit path is an error."""
    older, newer = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    name = dict.fromkeys(("manifest", "marker", "cut manifest"), "manifest.json").get(damage, "rank-00001.safetensors")
    victim = newer / "engine" / "rank-00001.safetensors"
    if damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "flip":
        victim.write_bytes(b"\xff" + victim.read_bytes()[1:])
    elif damage == "remove":
        victim.unlink()
    elif damage == "unreadable":
        victim.unlink()
        victim.mkdir()
    elif damage == "manifest":
        (newer / name).write_text((newer / name).read_text().replace("2", "3"))
    elif damage == "cut manifest":  # while it was written, so that its marker is that of what is left
        content = (newer / name).read_bytes()[:-20]
        (newer / name).write_bytes(content)
        (newer / "COMPLETE").write_text(digest_of_bytes(content))
    else:
        (newer / "COMPLETE").write_bytes(b"\xff\n")
    with pytest.raises(CheckpointError, match=name):
        verify(newer)
    notes: list[str] = []
    assert newest_complete(tmp_path, notes.append) == older
    assert len(notes) == 1 and newer.name in notes[0] and name in notes[0]
    chosen, notes = choose(config_of(tmp_path, small_config, "auto"))
    assert chosen == older and name in notes[0] and older.name in notes[1]
    with pytest.raises(CheckpointError, match=name):
        choose(config_of(tmp_path, small_config, str(newer)).model_copy(update={"run_dir": tmp_path / "another"}))


def test_a_checkpoint_of_the_run_itself_is_refused(tmp_path: Path, small_config: str) -> None:
    """The next start with the same command would have to go back to it."""
    own = make_checkpoint(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"a checkpoint of this very run_dir: use resume: auto"):
        choose(config_of(tmp_path, small_config, str(own)))


def test_a_run_that_went_on_from_another_runs_checkpoint_goes_on_with_its_own(
    tmp_path: Path, small_config: str
) -> None:
    (tmp_path / "run").mkdir()
    other, run_dir = make_checkpoint(tmp_path / "other", 2), tmp_path / "run"
    config = config_of(run_dir, small_config, str(other))
    assert choose(config) == (other, [f"resuming from {other}, as resume says"])
    whole, damaged = (make_checkpoint(run_dir, step, resume=str(other)) for step in (3, 4))
    (damaged / "state.json").unlink()
    shutil.rmtree(other)  # superseded there
    chosen, notes = choose(config)
    assert chosen == whole
    assert damaged.name in notes[0] and f"already gone on from {other}, which resume names" in notes[1]


def test_checkpoints_of_a_run_that_began_elsewhere_are_not_taken_for_it(tmp_path: Path, small_config: str) -> None:
    (tmp_path / "run").mkdir()
    other = make_checkpoint(tmp_path / "other", 2)
    make_checkpoint(tmp_path / "run", 5)
    with pytest.raises(CheckpointError, match=r"holds checkpoints of a run that did not begin there"):
        choose(config_of(tmp_path / "run", small_config, str(other)))


def test_a_checkpoint_of_another_version_is_no_reason_to_begin_anew(
    tmp_path: Path, small_config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", checkpoint.FORMAT_VERSION + 1)
    with pytest.raises(ConfigError, match=r"step-00000001 has the format .* of another deberta-scale"):
        choose(config_of(tmp_path, small_config, "auto"))


def test_a_directory_without_marker_is_no_checkpoint(tmp_path: Path) -> None:
    older, newer = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    (newer / "COMPLETE").unlink()
    (tmp_path / "checkpoints" / "step-00000009.partial").mkdir()
    assert newest_complete(tmp_path) == older
    assert {p.name for p in sweep_unfinished(tmp_path, print)} == {newer.name, "step-00000009.partial"}
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [older.name]


def test_only_what_all_ranks_wrote_is_published(tmp_path: Path) -> None:
    partial, manifest = write_aside(tmp_path, 1)
    (partial / "engine" / "rank-00002.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"rank-00002.safetensors was left there by another save"):
        publish(partial, checkpoint_dir(tmp_path, 1), manifest)
    (partial / "engine" / "rank-00002.safetensors").unlink()
    (partial / "engine" / "rank-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"rank-00001.safetensors was written by a rank, but is not there"):
        publish(partial, checkpoint_dir(tmp_path, 1), manifest)
    (partial / "engine" / "rank-00001.safetensors").write_bytes(bytes(150))
    with pytest.raises(CheckpointError, match=r"rank-00001.safetensors has 150 bytes, but 200 were written"):
        publish(partial, checkpoint_dir(tmp_path, 1), manifest)
    assert newest_complete(tmp_path) is None


def test_prune_keeps_the_newest_every_nth_and_the_one_in_use(tmp_path: Path) -> None:
    """R20."""
    paths = {step: make_checkpoint(tmp_path, step) for step in (1, 2, 3, 4, 5, 6, 7, 9)}
    removed = prune(tmp_path, paths[7], keep_last=2, keep_every_steps=4, also=[paths[1]], report=print)
    assert removed == [paths[5], paths[3], paths[2]]
    assert all(verify(paths[step]) for step in (1, 4, 6, 7, 9)), "9 is newer than the one just published"


def test_prune_survives_a_failed_delete_and_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R20."""
    paths = [make_checkpoint(tmp_path, step) for step in (1, 2, 3)]
    remove_tree = shutil.rmtree

    def refuse(path: Path) -> None:
        if path == paths[1]:
            raise OSError(16, "Device or resource busy", str(path))
        remove_tree(path)

    notes: list[str] = []
    monkeypatch.setattr(checkpoint.shutil, "rmtree", refuse)
    assert prune(tmp_path, paths[2], 1, None, [], notes.append) == [paths[0]]
    assert len(notes) == 1 and str(paths[1]) in notes[0] and "busy" in notes[0]
    assert newest_complete(tmp_path) == paths[2]
    monkeypatch.undo()
    assert prune(tmp_path, paths[2], 1, None, [], notes.append) == [paths[1]]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert newest_complete(tmp_path) is None
