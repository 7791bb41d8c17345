"""Checkpoints that are whole or do not exist: write aside, digest, publish with a marker last, trust only the marker.

Layout of `checkpoints/step-NNNNNNNN/`: `engine/rank-NNNNN.safetensors` (see `fragments`), `random/rank-NNNNN.pt`,
`state.json`, `manifest.json` (size and digest of every file), `COMPLETE` (digest of the manifest, written last).
`checkpoint_writer` makes them beside training.
"""

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from deberta_scale.config import ConfigError, RunConfig
from deberta_scale.data.hashing import key_of
from deberta_scale.durable import digest_of, digest_of_bytes, sync, write_durably
from deberta_scale.train import distributed
from deberta_scale.train.engine_state import restore_state
from deberta_scale.train.fragments import CheckpointError

FORMAT_VERSION = 2
_NAME = re.compile(r"step-(\d{8})")


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The steps done when it was saved, by its name."""
    return int(checkpoint.name.removeprefix("step-"))


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Published checkpoints, newest first. Says nothing about their digests."""
    found = [
        p for p in (run_dir / "checkpoints").glob("step-*") if _NAME.fullmatch(p.name) and (p / "COMPLETE").exists()
    ]
    return sorted(found, reverse=True)


def newest_complete(run_dir: Path, report: Callable[[str], None] = lambda message: None) -> Path | None:
    """The newest published checkpoint of a run whose digests agree; else as `first_whole`."""
    return first_whole(complete_checkpoints(run_dir), report)


def first_whole(checkpoints: Iterable[Path], report: Callable[[str], None]) -> Path | None:
    """The first one whose digests agree; `report` is told of each damaged one passed over."""
    for path in checkpoints:
        try:
            verify(path)
        except CheckpointError as error:
            report(f"passed over {path.name}: {error}")
            continue
        return path
    return None


def verify(checkpoint: Path) -> dict[str, Any]:
    """Re-read every file of a checkpoint and return its manifest.

    Raises CheckpointError naming the first file that is missing, of another size, or of another digest.
    """
    manifest = read_manifest(checkpoint)
    for name, expected in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, the manifest says {expected['bytes']}")
        if _digest_of(path) != expected["blake2b"]:
            raise CheckpointError(f"{path} does not have the digest of the manifest: the file was changed or damaged")
    return manifest


def _digest_of(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a published checkpoint, itself checked against the marker. Raises CheckpointError when it is
    damaged, and ConfigError when it is of another version's form: then no older one must be taken in its place."""
    marker, manifest = checkpoint / "COMPLETE", checkpoint / "manifest.json"
    if not marker.is_file():
        raise CheckpointError(f"{checkpoint} has no COMPLETE marker: it was never finished, or is no checkpoint")
    if not manifest.is_file():
        raise CheckpointError(f"{manifest} is missing")
    try:
        expected, content = marker.read_text(errors="replace").strip(), manifest.read_bytes()
        facts: dict[str, Any] = json.loads(content) if digest_of_bytes(content) == expected else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{manifest} or {marker.name} cannot be read: {error}") from error
    if not facts:
        raise CheckpointError(f"{manifest} does not have the digest that {marker.name} names")
    if facts["format_version"] != FORMAT_VERSION:
        raise ConfigError(
            f"{checkpoint} has the format {facts['format_version']} of another deberta-scale, and this one reads"
            f" {FORMAT_VERSION}; finish the run with the deberta-scale that began it, or give another run_dir"
        )
    return facts


def choose(config: RunConfig) -> tuple[Path | None, list[str]]:
    """Where a run starts from, as `resume` says, and what to tell people about it. On one rank; the others are told.

    Raises CheckpointError when `resume` names a checkpoint that is damaged, or one of the run's own.
    """
    if config.resume == "never":
        return None, ["starting fresh (resume: never)"]
    if config.resume != "auto":
        return _choose_named(config.run_dir, Path(config.resume))
    notes: list[str] = []
    newest = newest_complete(config.run_dir, notes.append)
    if newest is None:
        return None, [*notes, f"starting fresh: no complete checkpoint in {config.run_dir / 'checkpoints'}"]
    return newest, [*notes, f"resuming from {newest}, the newest complete checkpoint; all digests agree"]


def _choose_named(run_dir: Path, named: Path) -> tuple[Path, list[str]]:
    """The checkpoint of another run, or, when this run has gone on from it before, its own newest: the same command
    starts and restarts a run, whatever has become of the other one."""
    if named.resolve().parent == (run_dir / "checkpoints").resolve():
        raise CheckpointError(
            f"resume says {named}, a checkpoint of this very run_dir: use resume: auto, which goes on from the newest"
            " (move those away that are not wanted), or another run_dir"
        )
    notes: list[str] = []
    own = first_whole(complete_checkpoints(run_dir), notes.append)
    if own is None:
        verify(named)
        return named, [*notes, f"resuming from {named}, as resume says"]
    if read_manifest(own)["resume"] != str(named):
        raise CheckpointError(
            f"resume says {named}, but {run_dir} holds checkpoints of a run that did not begin there; use resume: auto"
            " to go on from them, or another run_dir"
        )
    return own, [*notes, f"resuming from {own}: this run has already gone on from {named}, which resume names"]


def publish(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Turn a directory written aside into a checkpoint: manifest, rename, marker. On one rank, when all have written.

    Raises CheckpointError when `partial` does not hold exactly the files of the manifest, in their sizes: ranks that do
    not see the same file system, a leftover that could not be removed, or a file that was cut.
    """
    _check_complete(partial, manifest["files"])
    content = json.dumps({"format_version": FORMAT_VERSION, **manifest}, indent=1)
    write_durably(partial / "manifest.json", content)
    for directory in [path for path in partial.rglob("*") if path.is_dir()] + [partial]:
        sync(directory)
    if final.exists():
        remove(final)
    partial.rename(final)
    sync(final.parent)
    write_durably(final / "COMPLETE", digest_of_bytes(content.encode()) + "\n")


def _check_complete(partial: Path, expected: Mapping[str, dict[str, Any]]) -> None:
    found = {str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file()}
    for name in sorted(found.symmetric_difference(expected)):
        if name in found:
            raise CheckpointError(f"{partial / name} was left there by another save; remove {partial}")
        raise CheckpointError(f"{partial / name} was written by a rank, but is not there: is run_dir on a shared disk?")
    for name, facts in expected.items():
        size = (partial / name).stat().st_size
        if size != facts["bytes"]:
            raise CheckpointError(f"{partial / name} has {size} bytes, but {facts['bytes']} were written: it was cut")


def prune(
    run_dir: Path,
    published: Path,
    keep_last: int,
    keep_every_steps: int | None,
    also: Collection[Path],
    report: Callable[[str], None],
) -> list[Path]:
    """Remove superseded checkpoints and leftovers, and return what was removed. While no save is being written.

    Kept are the newest `keep_last` up to `published`, those of a multiple of `keep_every_steps` steps, those in
    `also`, and newer ones than `published` (damaged ones, which the run went back behind and will replace). `report`
    is told of what could not be removed; the next call tries again.
    """
    candidates = [path for path in complete_checkpoints(run_dir) if path.name <= published.name]
    superseded = [
        path
        for path in candidates[keep_last:]
        if not (keep_every_steps and step_of(path) % keep_every_steps == 0)
        and path.resolve() not in {kept.resolve() for kept in also}
    ]
    return _remove_all([*superseded, *_unfinished(run_dir)], report)


def sweep_unfinished(run_dir: Path, report: Callable[[str], None]) -> list[Path]:
    """Remove what an interrupted save or deletion left behind, and return it; `report` is told of failures."""
    return _remove_all(_unfinished(run_dir), report)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint or a half-written one; interrupted at any point, what is left has no marker."""
    (checkpoint / "COMPLETE").unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def _unfinished(run_dir: Path) -> list[Path]:
    return [path for path in (run_dir / "checkpoints").glob("step-*") if not (path / "COMPLETE").exists()]


def _remove_all(paths: list[Path], report: Callable[[str], None]) -> list[Path]:
    removed = []
    for path in paths:
        try:
            remove(path)
            removed.append(path)
        except OSError as error:
            report(f"could not remove {path}: {error}; the next save tries again")
    return removed


def load(engine: Any, checkpoint: Path, facts: dict[str, Any], seed: int) -> list[str]:
    """Put parameters, moments, counters and random state back; on all ranks together.

    `facts` are those this run saves in its manifests: `zero_stage`, `precision`. Returns what to tell of them and of
    the number of ranks, where the checkpoint has others. Ranks that did not exist then get a random state of their
    own, fixed by `seed`. Raises ValueError as `restore_state`.
    """
    manifest = distributed.together(lambda: read_manifest(checkpoint))
    restore_state(engine, checkpoint / "engine")
    distributed.together(lambda: _restore_random_state(checkpoint, manifest, seed))
    return _changes(manifest, {**facts, "world_size": torch.distributed.get_world_size()})


def _restore_random_state(checkpoint: Path, manifest: dict[str, Any], seed: int) -> None:
    rank = torch.distributed.get_rank()
    if rank < manifest["world_size"]:
        _set_random_state(torch.load(checkpoint / "random" / f"rank-{rank:05d}.pt", weights_only=True))
    else:
        torch.manual_seed(int(key_of(seed, rank, manifest["step"])))


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    notes = []
    if any(before[name] != value for name, value in now.items()):
        notes.append(f"checkpoint of {_spread(before)} → {_spread(now)}")
    if before["precision"] != now["precision"]:
        notes.append("in another precision losses differ a little; masters and moments are the same, in fp32")
    if before["world_size"] < now["world_size"]:
        new = f"{before['world_size']} to {now['world_size'] - 1}"
        notes.append(f"ranks {new} have no random state in the checkpoint: their dropout begins with a fresh one")
    return notes


def _spread(facts: dict[str, Any]) -> str:
    return f"{facts['world_size']} rank(s), ZeRO {facts['zero_stage']}, {facts['precision']}"


def random_state() -> dict[str, torch.Tensor]:
    """A copy of this rank's random state, as `load` reads it."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
