"""What a run trains and how it is judged. `train.loop` knows the rest: steps, saves, stops, ways back."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from deberta_scale.data.loader import StepData
from deberta_scale.train.initial_weights import Stretches
from deberta_scale.train.launch_environment import Launch
from deberta_scale.train.state import GuardState, TrainState


@dataclass(frozen=True)
class Judgement:
    """What an evaluation found."""

    values: dict[str, Any]
    """For the log."""
    line: str
    """The same for people."""


class Objective(Protocol):
    """Data, model and judgement of a run. All methods are called by all ranks together, and what they raise for the
    user is a ValueError."""

    tokenizer: Path
    """Directory of the tokenizer that the data was made with."""
    flops_per_step: float
    """Of forward and backward pass, over all ranks."""
    without_targets: str
    """What to tell a person when a step has nothing to predict: why, and where to look."""

    def open(self, launch: Launch) -> None:
        """Open the data and check it. Before anything else."""

    def build_model(self) -> nn.Module:
        """Without values. A call of it with a micro-batch gives, of these rows, the sum of losses, the number of
        targets and how many of them are hit."""

    def initial_weights(self, model: nn.Module) -> tuple[Stretches, list[str]]:
        """What a fresh start begins with, and what to tell of it."""

    def state_after(self, step: int, guards: GuardState) -> TrainState:
        """What is saved of where the run stands."""

    def check_continues(self, state: TrainState) -> None:
        """Refuse a checkpoint of another run."""

    def steps(self, step: int) -> Generator[StepData, None, None]:
        """This rank's part of step after step, without end, when `step` are done."""

    def start_lines(self, step: int, world_size: int) -> Iterator[str]:
        """What a start says of model, data and batch."""

    def epochs_at(self, step: int) -> dict[str, float]:
        """How often each source of the data was read after `step` steps; the only one's name is empty."""

    def best_step(self, step: int) -> int | None:
        """The step up to `step` whose checkpoint is the best and stays, if any is: at the start, and after each
        evaluation."""

    def ended(self, step: int) -> str | None:
        """Why a run that stands here need not go on, if so: at its start, and after each evaluation."""

    def facts_of_data(self) -> dict[str, Any]:
        """What to keep in the run directory of how the data was made."""

    def evaluate(self, engine: Any, step: int, agree_to_stop: Callable[[], str | None]) -> Judgement:
        """Judge the model after `step` steps. Raises EvaluationStopped on all ranks when `agree_to_stop`, asked before
        each batch, gives a reason."""
