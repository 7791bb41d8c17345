"""Run by test_sift_zero.py in every rank: fine-tune a small classifier with SiFT in real engines.

Usage: sift_worker.py TASK RESULT CONFIG -- [key=value ...] -- ... Each `--` group is one model; rank 0 writes the
numbers of each as JSON. The rows of a step are cut into micro-batches by their number alone, and each begins its random
numbers by it, so that ranks see what a single process sees.
"""

from collections.abc import Callable
from typing import Any

import torch

from deberta_scale.config import Config
from deberta_scale.config_sift import SiftConfig
from deberta_scale.finetune.sift import Sift, SiftedModel
from deberta_scale.model.heads import SequenceModel
from deberta_scale.model.initial import InitialWeights
from deberta_scale.train import engine as engines
from deberta_scale.train.engine_update import update
from deberta_scale.train.initial_weights import set_weights
from deberta_scale.train.launch_environment import Launch
from tests.working import run_groups

SIFT = SiftConfig(weight=2.0, initial_noise=0.1, step_size=0.2)
LABELS = 3


def rows_of(micro_batch: int, config: Config) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, 1 for text and 0 for padding, labels: the same wherever they are asked for."""
    source = torch.Generator().manual_seed(micro_batch)
    shape = (config.batch.micro_sequences, 12)
    token_ids = torch.randint(4, config.model.vocab_size, shape, generator=source)
    lengths = torch.randint(5, 13, shape[:1], generator=source)
    is_text = (torch.arange(shape[1]) < lengths[:, None]).long()
    return token_ids * is_text, is_text, torch.randint(LABELS, shape[:1], generator=source)


def train(config: Config, launch: Launch, device: torch.device) -> list[list[float]]:
    """Of each step: the task's loss, the penalty, the norm of the gradient, over all ranks."""
    with torch.device("meta"):
        checkpoints = config.engine.activation_checkpointing != "none"
        model = SequenceModel(config.model, LABELS, 0.0, checkpoints)
    sifted = SiftedModel(model, SIFT, "classification")
    weights = InitialWeights(sifted, config.model.initializer_range, config.seed)
    engine = engines.build_engine(config, sifted, launch, device)
    set_weights(engine, weights)
    engine.train()
    return [step(engine, number, config, launch) for number in range(config.train.steps)]


def step(engine: Any, number: int, config: Config, launch: Launch) -> list[float]:
    accumulation = config.batch.accumulation_steps(launch.world_size)
    losses = torch.zeros(2)
    for micro_batch in range(accumulation):
        of_all = (number * accumulation + micro_batch) * launch.world_size + launch.rank
        torch.manual_seed(of_all)
        token_ids, is_text, labels = rows_of(of_all, config)
        sifted = engine(token_ids, is_text)
        loss = torch.nn.functional.cross_entropy(sifted.outputs, labels, reduction="sum")
        mean = (loss + sifted.penalty_sum) * launch.world_size / config.batch.sequences
        engine.backward(mean, scale_wrt_gas=False)
        if micro_batch < accumulation - 1:
            engine.step()
        losses += torch.stack([loss, sifted.penalty_sum]).detach()
    updated = update(engine, float("inf"))
    torch.distributed.all_reduce(losses)
    return [*(losses / config.batch.sequences).tolist(), updated.norm]


def data_parallel(config: Config, launch: Launch, device: torch.device) -> dict[str, float]:
    """The largest difference between gradients through DistributedDataParallel, which is called for every pass, and
    the mean of those of the plain model; and the largest gradient."""
    torch.manual_seed(config.seed)
    model = SequenceModel(config.model, LABELS, 0.0)
    model.deberta.embeddings.position_embeddings.requires_grad_(False)  # not used, which it must be told
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    sift = Sift(model, SIFT, "classification")

    def gradients(forward: torch.nn.Module, micro_batch: int) -> torch.Tensor:
        model.zero_grad()
        torch.manual_seed(micro_batch)
        token_ids, is_text, labels = rows_of(micro_batch, config)
        sifted = sift(lambda: forward(token_ids, is_text))
        (torch.nn.functional.cross_entropy(sifted.outputs, labels) + sifted.penalty).backward()
        return torch.cat([parameter.grad.flatten() for parameter in trained])

    found = gradients(wrapped, launch.rank)
    expected = torch.stack([gradients(model, rank) for rank in range(launch.world_size)]).mean(0)
    return {"difference": (found - expected).abs().max().item(), "largest": expected.abs().max().item()}


TASKS: dict[str, Callable[..., Any]] = {"train": train, "data_parallel": data_parallel}
run_groups(lambda task, *rest: TASKS[task](*rest))
