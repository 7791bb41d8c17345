"""The `sift` section: scale-invariant fine-tuning, which `finetune/sift.py` does. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from deberta_scale.config_data import PositiveInt, Section

Divergence = Literal["symmetric_kl", "kl", "mse"]
Head = Literal["classification", "regression", "choice", "tokens", "span"]
"""What a model answers with: a label or a number of each text, one of several choices, a label of each token, the two
ends of a span of tokens."""

PositiveFloat = Annotated[float, Field(gt=0.0)]

FIXED_BY_OFFICIAL = ("ascent_steps", "ball", "radius", "inner_loss", "outer_loss", "same_dropout")


class SiftConfig(Section):
    """Virtual adversarial training on normalised embeddings (paper, section 4). Lengths are in units of one normalised
    embedding, whose components have mean 0 and variance 1."""

    weight: float
    """Of the adversarial loss beside the task's own."""
    ascent_steps: PositiveInt = 1
    """Gradient steps from the random start to the adversarial perturbation. Each costs a forward and a backward
    pass."""
    step_size: PositiveFloat = 1e-2
    """Length of a step for each token: its largest component, or its Euclidean length with ball l2."""
    initial_noise: PositiveFloat = 1e-2
    """Standard deviation of each component of the random start. It cannot be 0: the two outputs would be equal there,
    where their divergence has no gradient."""
    ball: Literal["none", "inf", "l2"] = "none"
    """What the perturbation of each token is kept in: none; inf: no component above `radius`; l2: no Euclidean length
    above it."""
    radius: PositiveFloat | None = None
    """Of the ball."""
    inner_loss: Divergence | None = None
    """What the steps increase. Default: mse for a regression, symmetric_kl for everything else."""
    outer_loss: Divergence | None = None
    """What training decreases; default as above. symmetric_kl: KL in both directions, with gradients to both outputs;
    kl: KL(clean, perturbed), the clean output held fixed; mse: mean square of the logits' differences, with gradients
    to both."""
    same_dropout: bool = True
    """The perturbed passes drop what the clean pass dropped, so that nothing but the perturbation is compared."""
    modules: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Endings of the names of modules to perturb: LayerNorms at their input, embeddings at their output. Default: all
    that end in `embeddings.LayerNorm`, else all that end in `word_embedding` (XLNet)."""
    compat: Literal["none", "official"] = "none"
    """official: the released code's numbers, for reproduction: one step, a start that is clamped to twice its standard
    deviation, a cross-entropy in both directions, other dropout in every pass (see docs/sift.md)."""

    @field_validator("weight")
    @classmethod
    def _has_an_effect(cls, value: float) -> float:
        if value == 0:
            raise ValueError("the adversarial loss would have no effect; leave the section sift out")
        if value < 0:
            raise ValueError("training would increase the adversarial loss; give a number above 0")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "SiftConfig":
        if self.ball != "none" and self.radius is None:
            raise ValueError(f"ball {self.ball} needs a radius")
        if self.ball == "none" and self.radius is not None:
            raise ValueError("radius has no effect with ball none; give ball: inf or l2")
        useless = [key for key in FIXED_BY_OFFICIAL if key in self.model_fields_set]
        if self.compat == "official" and useless:
            raise ValueError(f"compat official has its own {', '.join(useless)}; leave it out, or use compat none")
        return self

    @property
    def keeps_dropout(self) -> bool:
        return self.same_dropout and self.compat == "none"

    def losses(self, task: Head) -> tuple[Divergence, Divergence]:
        """(inner, outer) for a task. Raises ValueError for a loss, or a mode, that means nothing there."""
        if self.compat == "official" and task not in ("classification", "choice"):
            raise ValueError(
                f"sift.compat official knows classification and choice only, not {task}: the released code"
                " takes all places for labels to compare; use compat none"
            )
        default: Divergence = "mse" if task == "regression" else "symmetric_kl"
        inner, outer = self.inner_loss or default, self.outer_loss or default
        for key, loss in (("inner_loss", inner), ("outer_loss", outer)):
            if task == "regression" and loss != "mse":
                raise ValueError(f"sift.{key} {loss} compares distributions, and a regression gives a number; use mse")
        return inner, outer
