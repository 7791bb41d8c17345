"""Run by test_task_model_zero.py in every rank: evaluate, train and evaluate models of tasks in real engines.

Usage: task_model_worker.py HEAD RESULT CONFIG -- [key=value ...] -- ... Each `--` group is one engine; rank 0 writes as
JSON the logits before a few steps with SiFT, the loss before and after them, and the norm of each step's gradient. The
random numbers of a micro-batch begin by its number, so that ranks see what a single process sees.
"""

from typing import Any

import torch

from deberta_scale.config import Config
from deberta_scale.config_sift import SiftConfig
from deberta_scale.finetune.inference import predict
from deberta_scale.finetune.loader import FineTuningLoader
from deberta_scale.finetune.model import TaskModel
from deberta_scale.finetune.tasks import Head
from deberta_scale.model.initial import InitialWeights
from deberta_scale.train import distributed
from deberta_scale.train import engine as engines
from deberta_scale.train.engine_update import update
from deberta_scale.train.initial_weights import set_weights
from deberta_scale.train.launch_environment import Launch
from tests.task_rows import OF_HEAD, random_rows
from tests.working import run_groups

SIFT = SiftConfig(weight=2.0, initial_noise=0.1, step_size=0.2)


def run(head: Head, config: Config, launch: Launch, device: torch.device) -> dict[str, Any]:
    loader = FineTuningLoader(
        random_rows(head), config.seed, config.batch.micro_sequences, launch.rank, launch.world_size
    )
    with torch.device("meta"):
        model = TaskModel(OF_HEAD[head], config.model, sift=SIFT)
    weights = InitialWeights(model, config.model.initializer_range, config.seed)
    engine = engines.build_engine(config, model, launch, device)
    set_weights(engine, weights)
    before = predict(engine, loader)
    steps = zip(range(config.train.steps), loader.steps(0, config.batch.sequences), strict=False)
    norms = [step(engine, number, data, launch) for number, data in steps]
    after = predict(engine, loader)
    return {"logits": [row.tolist() for row in before.logits], "losses": [before.loss, after.loss], "norms": norms}


def step(engine: Any, number: int, data: Any, launch: Launch) -> float:
    (targets,) = distributed.sum_over_ranks([data.predicted_tokens])
    counted = 0
    for micro_batch, batch in enumerate(data.micro_batches):
        torch.manual_seed(1000 * number + micro_batch * launch.world_size + launch.rank)
        loss_sum, in_batch, _ = engine(batch.to(engine.device))
        counted += int(in_batch)
        engine.backward(loss_sum * launch.world_size / targets, scale_wrt_gas=False)
        if micro_batch < len(data.micro_batches) - 1:
            engine.step()
    assert counted == data.predicted_tokens
    return float(update(engine, float("inf")).norm)


run_groups(run)
