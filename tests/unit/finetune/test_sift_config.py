"""Options of SiFT: what has no effect, or cannot be meant, is refused with what would work."""

from typing import Any

import pytest
from pydantic import ValidationError

from deberta_scale.config_sift import SiftConfig


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": 0}, "would have no effect; leave the section sift out"),
        ({"weight": -1}, "would increase the adversarial loss"),
        ({"weight": 1, "initial_noise": 0}, "greater than 0"),
        ({"weight": 1, "ball": "l2"}, "ball l2 needs a radius"),
        ({"weight": 1, "radius": 0.1}, "radius has no effect with ball none"),
        ({"weight": 1, "compat": "official", "same_dropout": True}, "has its own same_dropout"),
        ({"weight": 1, "compat": "official", "outer_loss": "kl"}, "has its own outer_loss"),
        ({"weight": 1, "step": 0.1}, "Extra inputs"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SiftConfig(**options)


def test_the_losses_of_a_task_are_those_that_mean_something_there() -> None:
    config = SiftConfig(weight=1)
    assert config.losses("regression") == ("mse", "mse")
    assert config.losses("span") == ("symmetric_kl", "symmetric_kl")
    assert SiftConfig(weight=1, inner_loss="kl").losses("tokens") == ("kl", "symmetric_kl")
    with pytest.raises(
        ValueError, match=r"sift\.outer_loss kl compares distributions, and a regression gives a number"
    ):
        SiftConfig(weight=1, outer_loss="kl").losses("regression")
    with pytest.raises(ValueError, match="official knows classification and choice only, not span"):
        SiftConfig(weight=1, compat="official").losses("span")
