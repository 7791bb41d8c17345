"""The `data` section of the config: where tokens come from, how they are mixed, packed and masked; and what all
sections share. Imports no torch.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ConfigError(ValueError):
    """A config that cannot be used. The message names file, key, value and what would work."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]


class MaskingConfig(Section):
    """Whole-word n-gram masking (paper, appendix A.3)."""

    probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of a row's tokens, special ones excluded, that are predicted."""
    max_span_words: PositiveInt = 3
    """Spans hold n = 1..this words, with probability proportional to 1/n."""
    mask_fraction: Fraction = 0.8
    """Of the predicted tokens, the share shown as [MASK]."""
    random_fraction: Fraction = 0.1
    """Of the predicted tokens, the share shown as a random piece; the rest are shown unchanged."""
    compat: Literal["none", "official"] = "none"
    """official: the released code's algorithm with its bias, for reproduction (see data/masking_official.py): the end
    of a row is hardly predicted, a row has at most 80 predictions, random pieces may be special ones."""

    @model_validator(mode="after")
    def _consistent(self) -> "MaskingConfig":
        if self.mask_fraction + self.random_fraction > 1.0 + 1e-9:
            raise ValueError(f"mask_fraction {self.mask_fraction} + random_fraction {self.random_fraction} exceeds 1")
        return self


class SourceConfig(Section):
    shards: Path
    """Directory written by data_prep/tokenize_corpus.py. All sources were cut by one tokenizer."""
    weight: Weight
    """Share of the samples, relative to the other weights, until a phase says otherwise. 0: not before a phase."""
    max_epochs: Annotated[float, Field(gt=0.0)]
    """A run that would read this source more often does not start."""


class PhaseConfig(Section):
    from_step: PositiveInt
    """Optimizer steps done when these weights begin to count."""
    weights: dict[str, Weight]
    """Of every source."""


class MixtureConfig(Section):
    """Several sources, their weights exact in every block of 1,024 samples (see data/mixture.py)."""

    sources: Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], SourceConfig], Field(min_length=1)]
    phases: tuple[PhaseConfig, ...] = ()
    """Other weights from some step on, and others again from a later one."""

    @model_validator(mode="after")
    def _consistent(self) -> "MixtureConfig":
        steps = [step for step, _ in self.weights_by_step()]
        if steps != sorted(set(steps)):
            raise ValueError(f"phases begin at steps {steps[1:]}; give each a later from_step than the one before it")
        for step, weights in self.weights_by_step():
            if weights.keys() != self.sources.keys():
                raise ValueError(
                    f"the phase from step {step} weights {', '.join(sorted(weights))}; the sources are"
                    f" {', '.join(sorted(self.sources))}: give each one weight, 0 for none"
                )
            if not any(weights.values()):
                raise ValueError(f"from step {step} on all weights are 0; give at least one source a weight")
        for name in self.sources:
            if not any(weights[name] for _, weights in self.weights_by_step()):
                raise ValueError(f"source {name!r} has weight 0 from beginning to end; leave it out")
        return self

    def weights_by_step(self) -> list[tuple[int, dict[str, float]]]:
        """(step from which they count, weights as given) of each phase, the first one included."""
        first = {name: source.weight for name, source in self.sources.items()}
        return [(0, first), *((phase.from_step, phase.weights) for phase in self.phases)]

    def share_of_run(self, steps: int) -> dict[str, float]:
        """Share of the samples of a run of `steps` steps, by source."""
        shares = dict.fromkeys(self.sources, 0.0)
        phases = self.weights_by_step()
        for (begin, weights), end in zip(phases, [*(step for step, _ in phases[1:]), steps], strict=True):
            for name, weight in weights.items():
                shares[name] += max(0, min(end, steps) - begin) / steps * weight / sum(weights.values())
        return shares


class DataConfig(Section):
    shards: Path | None = None
    """Directory written by data_prep/tokenize_corpus.py, with `train/` and `validation/` inside. Either this or
    `mixture`."""
    mixture: MixtureConfig | None = None
    """Several such directories, mixed. In a file or on the command line also the path of a YAML file with this section,
    such as the mixture.yaml that data_prep/tokenize_corpus.py --data writes."""
    sequence_length: Annotated[int, Field(ge=8)] = 512
    packing: Literal["best_fit", "concat", "doc"] = "best_fit"
    """best_fit: several documents a row, attention inside each; concat: rows cut from the token stream, documents
    joined by [SEP]; doc: one piece of one document a row."""
    masking: MaskingConfig = MaskingConfig()
    workers: Annotated[int, Field(ge=0, le=64)] = 1
    """Threads of a rank that make the coming steps, one each; 0: made when asked for. Does not change the samples."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "DataConfig":
        if self.shards is None and self.mixture is None:
            raise ValueError("give shards, one directory, or mixture, several with weights")
        if self.shards is not None and self.mixture is not None:
            raise ValueError("both shards and mixture are given; leave one out (shards: null on the command line)")
        return self

    @property
    def directories(self) -> dict[str, Path]:
        """The directories of shards by the config key that names them."""
        if self.mixture is None:
            assert self.shards is not None
            return {"data.shards": self.shards}
        return {f"data.mixture.sources.{name}.shards": source.shards for name, source in self.mixture.sources.items()}

    @property
    def tokenizer_dir(self) -> Path:
        """Of the first source: all share one tokenizer, which the loader checks."""
        return next(iter(self.directories.values())) / "tokenizer"

    def split_dirs(self, split: str) -> Path | dict[str, Path]:
        """The directory of a split, or of a mixture's splits by source."""
        if self.mixture is None:
            assert self.shards is not None
            return self.shards / split
        return {name: source.shards / split for name, source in self.mixture.sources.items()}
