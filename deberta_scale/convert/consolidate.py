"""A published checkpoint → the model's parameters in fp32, one at a time. Needs neither DeepSpeed nor ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deberta_scale.config_file import load
from deberta_scale.convert.source import Source, Weights
from deberta_scale.train.checkpoint import newest_complete, read_manifest, verify
from deberta_scale.train.fragments import CheckpointError, EngineFiles


def open_run(run_dir: Path, report: Callable[[str], None] = lambda message: None) -> Source:
    """The newest complete checkpoint of a run whose digests agree; `report` hears of those passed over.

    Raises CheckpointError when there is none, ConfigError when the run's config cannot be read.
    """
    newest = newest_complete(run_dir, report)
    if newest is None:
        raise CheckpointError(f"{run_dir / 'checkpoints'} holds no complete checkpoint whose digests agree")
    return _source(newest, read_manifest(newest))


def open_checkpoint(checkpoint: Path) -> Source:
    """A published checkpoint, of any ZeRO stage, precision and number of ranks, inside its run directory.

    Every file is checked against the manifest first. Raises CheckpointError when one is missing or damaged.
    """
    return _source(checkpoint, verify(checkpoint))


def _source(checkpoint: Path, manifest: dict[str, Any]) -> Source:
    run_dir = checkpoint.resolve().parent.parent
    tokenizer = run_dir / "tokenizer"
    return Source(
        path=checkpoint,
        kind="checkpoint",
        config=load(run_dir / "config.yaml").model,
        weights=read_weights(checkpoint),
        tokenizer=tokenizer if tokenizer.is_dir() else None,
        facts={"step": manifest["step"], "run_dir": run_dir},
    )


def read_weights(checkpoint: Path) -> Weights:
    """The masters, in fp32 whatever the training ran in. They stay in the files of the ranks until they are asked for.

    Raises CheckpointError naming the file that is missing, cut short, or not of this checkpoint.
    """
    files = EngineFiles(checkpoint / "engine")
    return Weights(files.shapes, files.read_weight)
