"""Checkpoints that are whole or do not exist: write aside, digest, publish with a marker last, trust only the marker.

Layout of `checkpoints/step-NNNNNNNN/`: `engine/` (DeepSpeed's files), `random/rank-NNNNN.pt`, `state.json`,
`manifest.json` (size and digest of every file), `COMPLETE` (digest of the manifest, written last).
DeepSpeed's own `latest` file is neither atomic nor after a barrier, and is not used.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deberta_scale.durable import digest_of, sync, write_durably
from deberta_scale.train import distributed
from deberta_scale.train.state import TrainState

FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{8})")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file."""


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Published checkpoints, newest first. Says nothing about their digests."""
    found = [
        p for p in (run_dir / "checkpoints").glob("step-*") if _NAME.fullmatch(p.name) and (p / "COMPLETE").exists()
    ]
    return sorted(found, reverse=True)


def newest_complete(run_dir: Path, report: Callable[[str], None] = lambda message: None) -> Path | None:
    """The newest published checkpoint whose digests agree; `report` is told of each damaged one passed over."""
    for path in complete_checkpoints(run_dir):
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
        if digest_of(path) != expected["blake2b"]:
            raise CheckpointError(f"{path} does not have the digest of the manifest: the file was changed or damaged")
    return manifest


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a published checkpoint, itself checked against the marker. Raises CheckpointError."""
    marker, manifest = checkpoint / "COMPLETE", checkpoint / "manifest.json"
    if not marker.is_file():
        raise CheckpointError(f"{checkpoint} has no COMPLETE marker: it was never finished, or is no checkpoint")
    if not manifest.is_file():
        raise CheckpointError(f"{manifest} is missing")
    if digest_of(manifest) != marker.read_text().strip():
        raise CheckpointError(f"{manifest} does not have the digest that {marker.name} names")
    content: dict[str, Any] = json.loads(manifest.read_text())
    if content["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{manifest} has format {content['format_version']}, this version reads {FORMAT_VERSION}")
    return content


def describe_files(partial: Path, rank: int, world_size: int) -> dict[str, dict[str, Any]]:
    """Size and digest of this rank's share of the files, each forced to disk. To be gathered from all ranks."""
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    described = {}
    for path in files[rank::world_size]:
        sync(path)
        described[str(path.relative_to(partial))] = {"bytes": path.stat().st_size, "blake2b": digest_of(path)}
    return described


def publish(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Turn a directory written aside into a checkpoint: manifest, rename, marker. On one rank, after a barrier."""
    write_durably(partial / "manifest.json", json.dumps({"format_version": FORMAT_VERSION, **manifest}, indent=1))
    for directory in [path for path in partial.rglob("*") if path.is_dir()] + [partial]:
        sync(directory)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    sync(final.parent)
    write_durably(final / "COMPLETE", digest_of(final / "manifest.json") + "\n")


def prune(run_dir: Path, keep: int) -> list[Path]:
    """Remove all but the newest `keep` complete checkpoints, marker first. Returns what was removed."""
    removed = complete_checkpoints(run_dir)[keep:]
    for path in removed:
        remove(path)
    return removed


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint or a half-written one; interrupted at any point, what is left has no marker."""
    (checkpoint / "COMPLETE").unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def sweep_unfinished(run_dir: Path) -> list[Path]:
    """Remove what an interrupted save or deletion left behind. Returns what was removed."""
    left = [p for p in (run_dir / "checkpoints").glob("step-*") if not (p / "COMPLETE").exists()]
    for path in left:
        remove(path)
    return left


def save(engine: Any, run_dir: Path, state: TrainState, manifest: dict[str, Any], keep: int) -> Path:
    """Save on all ranks together and publish; then remove all but the newest `keep` checkpoints.

    `manifest` holds the run's facts to write beside the file digests (step, world size, precision, ...).
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    final = checkpoint_dir(run_dir, state.step)
    partial = final.with_name(final.name + ".partial")

    def start_empty() -> None:
        if partial.exists():
            shutil.rmtree(partial)
        (partial / "random").mkdir(parents=True)
        state.write(partial / "state.json")

    distributed.on_main(start_empty)
    torch.save(_random_state(), partial / "random" / f"rank-{rank:05d}.pt")
    engine.save_checkpoint(str(partial), tag="engine", save_latest=False)
    distributed.barrier()
    shares = distributed.gather_objects(describe_files(partial, rank, world_size))
    files = {name: entry for share in shares for name, entry in sorted(share.items())}

    def finish() -> None:
        publish(partial, final, {"step": state.step, "world_size": world_size, **manifest, "files": files})
        prune(run_dir, keep)

    distributed.on_main(finish)
    return final


def load(engine: Any, checkpoint: Path) -> None:
    """Put parameters, moments and random state back on all ranks.

    Raises CheckpointError when the checkpoint was written by another number of ranks.
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    saved_world_size = read_manifest(checkpoint)["world_size"]
    if saved_world_size != world_size:
        raise CheckpointError(
            f"{checkpoint} was written by {saved_world_size} rank(s), this run has {world_size}; start"
            f" {saved_world_size} rank(s) to go on with it"
        )
    loaded, _ = engine.load_checkpoint(str(checkpoint), tag="engine", load_lr_scheduler_states=False)
    if loaded is None:
        raise CheckpointError(f"{checkpoint / 'engine'} could not be loaded")
    _set_random_state(torch.load(checkpoint / "random" / f"rank-{rank:05d}.pt", weights_only=True))


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
