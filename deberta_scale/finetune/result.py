"""`result.json`: what a finished run found. It is written last, after the export, and so says that both are there."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deberta_scale.config import ConfigError
from deberta_scale.config_finetune import FineTuneConfig
from deberta_scale.durable import write_durably

RESULT_FILE = "result.json"
EXPORT_DIR = "huggingface"
_CHANGE_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("run_dir", "resume", "guards", "engine"), True),
    "train": {"log_every_steps", "max_hours"},
}


@dataclass(frozen=True)
class Result:
    """Of the best checkpoint of a run."""

    task: str
    metric: str
    """The one that told the best: `validation/matthews`."""
    values: dict[str, float]
    """All metrics of all validation splits, by such names."""
    step: int
    """After which it was the best."""
    last_step: int
    """Of the run, which may have ended early."""
    settings: dict[str, Any]
    """Of the config as it was written, but for what changes no result."""


def settings_of(config: FineTuneConfig) -> dict[str, Any]:
    """What a run of other values would find something else with."""
    return config.model_dump(mode="json", exclude=_CHANGE_NOTHING)


def write_result(run_dir: Path, result: Result) -> None:
    write_durably(run_dir / RESULT_FILE, json.dumps(asdict(result), indent=2) + "\n")


def read_result(config: FineTuneConfig) -> Result | None:
    """That of `run_dir`, if it is finished.

    Raises ConfigError when the finished run had other settings, which would have no effect on it any more.
    """
    path = config.run_dir / RESULT_FILE
    if not path.exists():
        return None
    try:
        result = Result(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: not what a finished run writes ({error}); remove the run, or copy it again"
        ) from None
    differences = list(_differences(result.settings, settings_of(config)))
    if differences:
        raise ConfigError(
            "\n".join([f"run_dir {config.run_dir} holds a finished run with other settings:", *differences])
            + "\ngive another run_dir for a new run"
        )
    return result


def _differences(then: Any, now: Any, key: str = "") -> list[str]:
    """A line for each value that is not the same."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*then, *now])
        return [
            line for name in keys for line in _differences(then.get(name), now.get(name), f"{key}.{name}".strip("."))
        ]
    return [] if then == now else [f"  {key}: it has {then!r}, the config {now!r}"]
