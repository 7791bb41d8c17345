"""A model of a few hundred parameters in a real DeepSpeed engine, for tests that look at what the engine holds."""

from pathlib import Path
from typing import Any

import torch

from deberta_scale.train.optim import parameter_groups

SEQUENCES = 4
"""In each step, whatever the number of ranks, which must divide it."""


class TiedModel(torch.nn.Module):
    """No size divides by two; the decoder is the embedding, registered under both names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(13, width)
        self.inner = torch.nn.Linear(width, 7)
        self.LayerNorm = torch.nn.LayerNorm(7)
        self.outer = torch.nn.Linear(7, width)
        self.decoder = torch.nn.Linear(width, 13, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.outer(self.LayerNorm(self.inner(self.embedding(token_ids))))
        return torch.nn.functional.cross_entropy(self.decoder(hidden).float().flatten(0, 1), token_ids.flatten())


def tied_engine(stage: int, precision: str, seed: int = 0, offload: str = "none", disk: Path | None = None) -> Any:
    """A fresh engine, the same on any number of ranks. `offload` may put the optimizer on the `cpu` or the `disk`, for
    which the model is large enough that some of its vectors lie there and some do not."""
    import deepspeed

    torch.manual_seed(seed)
    model = TiedModel(45_001 if offload == "disk" else 5)
    settings: dict[str, Any] = {
        "train_batch_size": SEQUENCES,
        "train_micro_batch_size_per_gpu": SEQUENCES // torch.distributed.get_world_size(),
        # Small sub-groups, so that stage 3 has several vectors; one parameter of it is kept whole.
        "zero_optimization": {"stage": stage, "sub_group_size": 50, "stage3_param_persistence_threshold": 10},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
    }
    if offload != "none":
        device = {"cpu": {"device": "cpu"}, "disk": {"device": "nvme", "nvme_path": str(disk), "buffer_count": 4}}
        settings["zero_optimization"]["offload_optimizer"] = device[offload]
        settings["optimizer"]["params"]["torch_adam"] = False
    if precision != "fp32":
        settings[precision] = {"enabled": True}
    if precision == "fp16":
        settings[precision] |= {"initial_scale_power": 18, "hysteresis": 1, "loss_scale_window": 1}
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model.named_parameters(), 0.01),
        config=settings,
        dist_init_required=False,
    )
    return engine


def train(engine: Any, steps: range) -> list[float]:
    """Take these steps; returns the mean loss of each over all ranks."""
    losses = []
    for step in steps:
        rows = torch.randint(13, (SEQUENCES, 6), generator=torch.Generator().manual_seed(step))
        loss = engine(rows[torch.distributed.get_rank() :: torch.distributed.get_world_size()])
        engine.backward(loss)
        engine.step()
        mean = loss.detach().double() / torch.distributed.get_world_size()
        torch.distributed.all_reduce(mean)
        losses.append(mean.item())
    return losses
