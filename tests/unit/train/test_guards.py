"""Which steps the guards skip, and when the run goes back."""

import json
import math
import random
from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import ValidationError

from deberta_scale.config import GuardsConfig
from deberta_scale.train.engine_update import Update
from deberta_scale.train.guards import DivergedError, GoBack, Guards, Skip, StepOutcome, skip_of
from deberta_scale.train.state import GuardState, TrainState


def follow(guards: Guards, norms: list[float], first_step: int = 1) -> list[int]:
    """Note gradients of these norms; returns the steps that were skipped."""
    skipped = []
    for step, norm in enumerate(norms, start=first_step):
        limit = guards.largest_norm
        skip = skip_of(Update(norm, made=norm <= limit and math.isfinite(norm)), limit)
        guards.note(step, StepOutcome(norm, skip))
        skipped += [step] if skip else []
    return skipped


def steady(num: int, mean: float = 1.0, seed: int = 1) -> list[float]:
    """Norms that scatter by a tenth, as recorded ones do late in a run."""
    numbers = random.Random(seed)
    return [mean * math.exp(0.1 * numbers.gauss(0.0, 1.0)) for _ in range(num)]


def test_a_usual_run_is_never_disturbed() -> None:
    """R15: norms fall during the warm-up, stay on a plateau, double within fifty steps when the loss leaves it, and
    scatter all the time."""
    numbers = random.Random(3)
    course = [8.0 * math.exp(-step / 20) + 0.8 for step in range(400)]
    course += [0.8 + 0.02 * step for step in range(50)] + [1.8] * 2000
    norms = [value * math.exp(0.15 * numbers.gauss(0.0, 1.0)) for value in course]
    assert follow(Guards(GuardsConfig(), GuardState()), norms) == []


def test_a_spike_is_skipped_once_and_hardly_moves_the_mean() -> None:
    """R15."""
    guards = Guards(GuardsConfig(), GuardState())
    assert follow(guards, [*steady(300), 1000.0, *steady(300, seed=2)]) == [301]
    assert guards.state.norm_mean == pytest.approx(1.0, abs=0.1)
    assert guards.state.num_skipped == 1 and guards.state.updated_step == 601


def test_norms_that_stay_higher_are_soon_usual() -> None:
    """Other data, as in the next phase of a mixture, must not make the run go back."""
    guards = Guards(GuardsConfig(), GuardState())
    skipped = follow(guards, [*steady(300), *steady(300, mean=6.0)])
    assert skipped == list(range(301, 301 + len(skipped))) and 1 <= len(skipped) <= 8


def test_spikes_are_not_judged_before_there_is_a_mean() -> None:
    guards = Guards(GuardsConfig(spike_after_steps=5), GuardState())
    assert follow(guards, [1.0, 100.0, 1.0, 1.0]) == []
    assert follow(guards, [1.0, 1.0, 1e4], first_step=5) == [7]


def test_a_gradient_that_is_not_finite_is_skipped_from_the_first_step() -> None:
    """R14."""
    guards = Guards(GuardsConfig(), GuardState())
    assert follow(guards, [math.inf, 1.0]) == [1]
    assert guards.state.num_norms == 1


def test_one_skip_too_many_within_the_window_goes_back() -> None:
    """R15."""
    guards = Guards(GuardsConfig(max_skips=2, window_steps=10), GuardState())
    assert follow(guards, [1.0, math.inf, math.inf, *[1.0] * 8, math.inf]) == [2, 3, 12]
    with pytest.raises(GoBack, match="3 of the last 10 steps were skipped"):
        follow(guards, [math.inf, math.inf], first_step=13)


def test_overflows_of_fp16_never_go_back() -> None:
    guards = Guards(GuardsConfig(max_skips=0), GuardState())
    for step in range(1, 50):
        skip = skip_of(Update(math.inf, made=False, overflowed=True), math.inf)
        guards.note(step, StepOutcome(math.inf, skip))
    assert guards.state.num_overflowed == 49 and guards.state.num_skipped == 0


def test_going_back_again_and_again_ends_unless_a_trained_checkpoint_was_reached() -> None:
    """R15: a checkpoint beyond the failed step counts only when its weights were updated beyond it."""
    guards = Guards(GuardsConfig(max_rollbacks=2), GuardState(recent_skips=[5, 6, 7]))
    untrained, trained = GuardState(updated_step=4), GuardState(updated_step=10)
    assert guards.go_back(7, 4, untrained) == [5, 6, 7]
    guards.go_back(9, 8, untrained)
    guards.go_back(12, 10, trained)
    assert guards.state.num_rollbacks == 1 and guards.state.passed_over == [5, 6, 7]
    guards.go_back(12, 10, trained)
    with pytest.raises(DivergedError, match="brought no checkpoint that was trained beyond step 12"):
        guards.go_back(12, 10, trained)


def test_what_the_guards_know_is_saved_exactly(tmp_path: Path) -> None:
    """R16: also of checkpoints from before there were guards."""
    guards = Guards(GuardsConfig(), GuardState(passed_over=[3]))
    follow(guards, [*steady(150), 99.0])
    state = TrainState(151, "fingerprint", {}, guards=guards.state)
    state.write(tmp_path / "state.json")
    assert TrainState.read(tmp_path / "state.json") == state
    old = {key: value for key, value in asdict(state).items() if key != "guards"}
    (tmp_path / "state.json").write_text(json.dumps(old))
    assert TrainState.read(tmp_path / "state.json").guards == GuardState()


def test_a_reason_names_the_value_and_the_limit() -> None:
    skip = skip_of(Update(12.5, made=False), 3.25)
    assert skip == Skip("the gradient norm is 12.5, above 3.25", 12.5, is_spike=True)


def test_skips_that_could_never_be_too_many_are_refused() -> None:
    with pytest.raises(ValidationError, match="max_skips 10 would have no effect"):
        GuardsConfig(max_skips=10, window_steps=10)
