"""Where the run stands: plain numbers, saved as JSON beside the tensors."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from deberta_scale.config import Config, ConfigError


@dataclass(frozen=True)
class TrainState:
    """What resuming needs besides parameters, moments and random state."""

    step: int
    """Optimizer steps done."""
    samples_seen: int
    """Samples read; the whole position in the data."""
    data_fingerprint: str
    trajectory: dict[str, object]
    """The config values that fix the trajectory, see `trajectory_of`."""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def read(path: Path) -> "TrainState":
        return TrainState(**json.loads(path.read_text()))

    def check_continues(self, config: Config, data_fingerprint: str) -> None:
        """Raise ConfigError naming each difference, if `config` on this data would not continue the trajectory."""
        differences = [
            f"  {key}: the checkpoint has {self.trajectory.get(key)!r}, the config {value!r}"
            for key, value in trajectory_of(config).items()
            if self.trajectory.get(key) != value
        ]
        if self.data_fingerprint != data_fingerprint:
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
    """The settings that may not change between a checkpoint and its resumption, by dotted key."""
    tree = config.model_dump(mode="json")
    keys = [f"model.{key}" for key in tree["model"]]
    keys += ["data.sequence_length", "data.packing", "data.masking", "batch.sequences", "seed"]
    keys += ["engine.zero_stage", "engine.precision", "init_from"]
    found: dict[str, object] = {}
    for key in keys:
        section, _, name = key.rpartition(".")
        found[key] = tree[section][name] if section else tree[name]
    return found
