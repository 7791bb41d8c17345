"""Where the run stands: plain numbers, saved as JSON beside the tensors."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deberta_scale.config import Config, ConfigError
from deberta_scale.durable import write_described

SAMPLES_VERSION = 2
"""Of the way from tokens to samples: packing, order, mixture and masks. One more whenever any of them makes another
sample g of the same data and config, so that no older checkpoint goes on with other samples."""


@dataclass(frozen=True)
class GuardState:
    """What the guards know of the steps so far, see `train.guards`. Steps are numbered from 1."""

    num_norms: int = 0
    """Gradient norms in the running mean."""
    norm_mean: float = 0.0
    norm_variance: float = 0.0
    updated_step: int = 0
    """The last step that changed the weights."""
    num_skipped: int = 0
    """Steps skipped or passed over, of those done."""
    num_overflowed: int = 0
    """Steps without an update because the loss scale of fp16 was too large."""
    recent_skips: list[int] = dataclasses.field(default_factory=list)
    passed_over: list[int] = dataclasses.field(default_factory=list)
    """Steps, done and to come, whose samples are not trained on, since they made the run go back."""
    num_rollbacks: int = 0
    """One after the other, without a checkpoint of weights updated beyond `failed_step`."""
    failed_step: int = 0
    """The last step that made the run go back."""


@dataclass(frozen=True)
class TrainState:
    """What resuming needs besides parameters, moments and random state."""

    step: int
    """Optimizer steps done; with the batch, the whole position in the data."""
    data_fingerprint: str
    trajectory: dict[str, object]
    """The config values that fix the trajectory, see `trajectory_of`."""
    source_fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of each source of a mixture, by name."""
    guards: GuardState = GuardState()

    def write(self, path: Path) -> dict[str, Any]:
        """Returns as `write_described`."""
        return write_described(path, [json.dumps(dataclasses.asdict(self), indent=2).encode() + b"\n"])

    @staticmethod
    def read(path: Path) -> "TrainState":
        values = json.loads(path.read_text())
        return TrainState(**values | {"guards": GuardState(**values.get("guards", {}))})

    def differences(self, wanted: dict[str, object], keys: Iterable[str]) -> list[str]:
        """A line for each of `keys` that has another value in this trajectory than in `wanted`."""
        return [
            f"  {key}: the checkpoint has {self.trajectory.get(key)!r}, the config {wanted.get(key)!r}"
            for key in keys
            if self.trajectory.get(key) != wanted.get(key)
        ]

    def check_continues(
        self, config: Config, data_fingerprint: str, source_fingerprints: dict[str, str] | None = None
    ) -> None:
        """Raise ConfigError naming each difference, if `config` on this data would not continue the trajectory."""
        version = self.trajectory.get("samples_version", 1)  # before it was written down
        if version != SAMPLES_VERSION:
            raise ConfigError(
                f"the checkpoint of step {self.step} was made with another way to pack, order and mask (samples_version"
                f" {version}, here {SAMPLES_VERSION}), and would go on with other samples; finish the run with the"
                " deberta-scale that began it, or begin another run_dir with init_from and this checkpoint"
            )
        wanted = trajectory_of(config)
        # Sources and phases that are gone are found by what the checkpoint says of them.
        keys = [*wanted, *(key for key in self.trajectory if key.startswith("data.mixture.") and key not in wanted)]
        differences = self.differences(wanted, keys)
        for name, fingerprint in (source_fingerprints or {}).items():
            saved = self.source_fingerprints.get(name, fingerprint)
            if saved != fingerprint:
                differences.append(
                    f"  data.mixture.sources.{name}.shards: the checkpoint's training set has fingerprint {saved[:16]},"
                    f" {config.data.directories[f'data.mixture.sources.{name}.shards']} has {fingerprint[:16]}"
                )
        if self.data_fingerprint != data_fingerprint and config.data.mixture is None:
            differences.append(
                f"  data.shards: the checkpoint's training set has fingerprint {self.data_fingerprint[:16]},"
                f" {config.data.shards} has {data_fingerprint[:16]}"
            )
        if differences:
            raise ConfigError(
                f"the checkpoint of step {self.step} does not continue with this config:\n"
                + "\n".join(differences)
                + "\ngive the saved values back, or another run_dir for a new run"
            )


def trajectory_of(config: Config) -> dict[str, object]:
    """What may not change between a checkpoint and its resumption: settings by dotted key, and how samples are made."""
    tree = config.model_dump(mode="json")
    keys = [f"model.{key}" for key in tree["model"]]
    keys += ["data.sequence_length", "data.packing", "data.masking", "batch.sequences", "seed", "init_from"]
    if tree["data"]["masking"]["compat"] == "none":
        del tree["data"]["masking"]["compat"]  # as in checkpoints from before there was a choice
    found: dict[str, object] = {"samples_version": SAMPLES_VERSION}
    if config.data.mixture is not None:
        for name, source in config.data.mixture.sources.items():
            found[f"data.mixture.sources.{name}.weight"] = source.weight
        for phase in config.data.mixture.phases:
            found[f"data.mixture.phases.from_step {phase.from_step}"] = phase.weights
    for key in keys:
        section, _, name = key.rpartition(".")
        found[key] = tree[section][name] if section else tree[name]
    return found
