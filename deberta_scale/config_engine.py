"""The `engine` section: how the step is spread over ranks, stored and computed. Imports no torch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from deberta_scale.config_data import PositiveInt, Section


class EngineConfig(Section):
    """How the step is spread and stored. Changes memory and speed; in fp32 not the result."""

    zero_stage: Literal[0, 1, 2, 3] = 3
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    activation_checkpointing: Literal["none", "non_reentrant"] = "none"
    attention: Literal["auto", "cpu", "skew", "reference"] = "auto"
    """The kernel. auto: the fastest that runs here, and the log says which and why; any other is that one, or the run
    is refused. cpu: compiled; skew: torch operations in blocks; reference: the formula."""
    offload_optimizer: Literal["none", "cpu", "disk"] = "none"
    """Where masters and moments lie between updates, which then happen on the host."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """Where a rank's share of the parameters lies while it is not used."""
    offload_directory: Path | None = None
    """Of a disk of this machine, for what is offloaded to it. It is made when missing; one run uses it at a time."""
    hpz_partition_size: PositiveInt = 1
    """ZeRO++: ranks, best those of one machine, that hold a second copy of all parameters among them, so that
    gathering for backward stays inside the machine. 1: no such copy."""
    quantized_weights: bool = False
    """ZeRO++: gather parameters in 8 bits."""
    quantized_gradients: bool = False
    """ZeRO++: sum gradients over machines in 4 bits."""

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _modes_that_work(cls, value: Any) -> Any:
        if value in ("reentrant", "deepspeed"):
            raise ValueError(
                f"{value!r} fails in DeepSpeed when a layer runs twice, and the enhanced mask decoder runs the"
                " last layer twice; use 'non_reentrant' or 'none'"
            )
        return "none" if value is False else value

    @field_validator("offload_parameters", mode="before")
    @classmethod
    def _places_that_work(cls, value: Any) -> Any:
        if value == "disk":
            raise ValueError(
                "'disk' fails in DeepSpeed during backward: every one of its buffers must hold the whole word table,"
                " and a step needs more of them than that saves; use 'cpu' or 'none', and offload_optimizer disk"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "EngineConfig":
        self._check_offload()
        if self.zero_stage == 0 and self.precision != "fp32":
            raise ValueError(
                f"zero_stage 0 trains in fp32 only, not {self.precision}: without ZeRO, DeepSpeed's 16-bit wrapper"
                " gives other losses; use zero_stage 1"
            )
        for key in ("hpz_partition_size", "quantized_weights", "quantized_gradients"):
            if getattr(self, key) != type(self).model_fields[key].default and self.zero_stage != 3:
                raise ValueError(f"{key} has an effect at zero_stage 3 only, not {self.zero_stage}")
        return self

    def _check_offload(self) -> None:
        if self.offload_parameters != "none" and self.zero_stage != 3:
            raise ValueError(f"offload_parameters needs zero_stage 3, not {self.zero_stage}")
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3, not 0")
        to_disk = self.offload_optimizer == "disk"
        if to_disk and self.zero_stage != 3:
            raise ValueError(f"offload_optimizer disk needs zero_stage 3, not {self.zero_stage}")
        if to_disk and self.offload_directory is None:
            raise ValueError("offload_optimizer disk needs offload_directory, a directory of a fast disk")
        if not to_disk and self.offload_directory is not None:
            raise ValueError(
                f"offload_directory has no effect with offload_optimizer {self.offload_optimizer}; it belongs to disk"
            )
