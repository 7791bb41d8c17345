"""Run by test_consolidate.py in every rank: train a little in several ways, publish, and keep what the engine holds.

Usage: consolidate_worker.py DIRECTORY STAGE-PRECISION... Each leaves in DIRECTORY/STAGE-PRECISION a checkpoint and
expected.safetensors, DeepSpeed's own view of the whole fp32 parameters.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from deberta_scale.train import checkpoint, distributed, engine
from deberta_scale.train.optim import parameter_groups
from deberta_scale.train.state import TrainState


class TiedModel(torch.nn.Module):
    """No size divides by two; the decoder is the embedding, registered under both names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(13, 5)
        self.inner = torch.nn.Linear(5, 7)
        self.LayerNorm = torch.nn.LayerNorm(7)
        self.outer = torch.nn.Linear(7, 5)
        self.decoder = torch.nn.Linear(5, 13, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.outer(self.LayerNorm(self.inner(self.embedding(token_ids))))
        return torch.nn.functional.cross_entropy(self.decoder(hidden).float(), token_ids)


def train_and_publish(directory: Path, stage: int, precision: str, world_size: int) -> None:
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    torch.manual_seed(stage)
    model = TiedModel()
    settings = {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "sub_group_size": 50},  # small, so that stage 3 writes several vectors
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
    }
    if precision != "fp32":
        settings[precision] = {"enabled": True}
    wrapped, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model.named_parameters(), 0.01),
        config=settings,
        dist_init_required=False,
    )
    for start in (0, 4):
        wrapped.backward(wrapped(torch.arange(start, start + 4)))
        wrapped.step()
    state = TrainState(step=2, samples_seen=2 * world_size, data_fingerprint="", trajectory={})
    checkpoint.save(wrapped, directory, state, {"zero_stage": stage, "precision": precision}, keep=1)
    expected = {}
    for name, parameter in wrapped.module.named_parameters():
        whole = parameter.detach() if stage == 0 else safe_get_full_fp32_param(parameter)
        expected[name] = whole.clone()
    if distributed.gather_objects(None) and torch.distributed.get_rank() == 0:
        save_file(expected, directory / "expected.safetensors")
    wrapped.destroy()


def main() -> None:
    launch = distributed.read_launch(os.environ)
    engine.start_process_group(launch)
    for name in sys.argv[2:]:
        stage, precision = name.split("-")
        train_and_publish(Path(sys.argv[1]) / name, int(stage), precision, launch.world_size)
    distributed.end_process(0)


main()
