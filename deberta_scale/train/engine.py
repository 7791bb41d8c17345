"""Config → DeepSpeed's JSON → engine. The only place that imports deepspeed, and where its traps are closed.

- On a CPU its shared-memory collective leaks 66 MiB of /dev/shm per rank and start; it is switched off, gloo remains.
- A process killed while building an extension leaves a lock on which every later run waits for ever. Builds happen
  here, under a file lock that the kernel releases with its owner, after clearing what a dead owner left.
- `memory_efficient_linear` changes the numerics of stage 3; off, all stages compute the same.
- Its fused Adam does not resume bit for bit on a CPU; torch's AdamW does.
"""

import fcntl
import json
import logging
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from deberta_scale.config import REDUCE_BUCKET_ELEMENTS, Config
from deberta_scale.durable import write_durably
from deberta_scale.model.sizes import parameter_count
from deberta_scale.train.distributed import Launch, announce_single_process, open_control_group
from deberta_scale.train.optim import parameter_groups


def start_process_group(launch: Launch) -> torch.device:
    """Join the other ranks; returns this rank's device. NCCL on GPUs; gloo on CPUs or with DS_ACCELERATOR=cpu."""
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    import deepspeed

    if on_gpu:
        device = torch.device("cuda", launch.local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if launch.source == "single process":
        announce_single_process()
    deepspeed.utils.logging.logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # names DeepSpeed still uses
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False)
    open_control_group()
    return device


def deepspeed_json(config: Config, world_size: int, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for this run. A pure function, so that it can be read before a machine is touched."""
    engine, optimizer = config.engine, config.optimizer
    bucket = min(REDUCE_BUCKET_ELEMENTS, parameter_count(config.model).total)
    zero: dict[str, Any] = {"stage": engine.zero_stage, "reduce_bucket_size": bucket}
    if engine.zero_stage == 3:
        zero["memory_efficient_linear"] = False
    if engine.offload_optimizer != "none":
        zero["offload_optimizer"] = {"device": engine.offload_optimizer, "pin_memory": on_gpu}
    if engine.offload_parameters != "none":
        zero["offload_param"] = {"device": engine.offload_parameters, "pin_memory": on_gpu}
    adam: dict[str, Any] = {
        "lr": optimizer.learning_rate,
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
        "bias_correction": True,
    }
    if not on_gpu and engine.offload_optimizer == "none":
        adam = {**adam, "torch_adam": True}
        del adam["bias_correction"]  # torch's AdamW always corrects, and takes no such argument
    generated: dict[str, Any] = {
        "train_batch_size": config.batch.sequences,
        "train_micro_batch_size_per_gpu": config.batch.micro_sequences,
        "gradient_accumulation_steps": config.batch.accumulation_steps(world_size),
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_optimization": zero,
        "optimizer": {"type": "AdamW", "params": adam},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if engine.precision == "bf16":
        generated["bf16"] = {"enabled": True}
    if engine.precision == "fp16":
        generated["fp16"] = {"enabled": True, "initial_scale_power": 16, "loss_scale_window": 1000}
    return generated


def build_engine(config: Config, model: torch.nn.Module, launch: Launch, device: torch.device) -> Any:
    """Wrap `model` in a DeepSpeed engine and save the generated JSON as `run_dir/deepspeed.json`."""
    import deepspeed

    generated = deepspeed_json(config, launch.world_size, device.type == "cuda")
    if launch.is_main:
        write_durably(config.run_dir / "deepspeed.json", json.dumps(generated, indent=2) + "\n")
    _build_extensions(config, device)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model.named_parameters(), config.optimizer.weight_decay),
        config=generated,
        dist_init_required=False,
    )
    return engine


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Use this rate for the next update, in all parameter groups."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def gradient_norm(engine: Any) -> float | None:
    """Norm of the last step's whole gradient before clipping; None where DeepSpeed does not compute it."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def _build_extensions(config: Config, device: torch.device) -> None:
    """Build the compiled optimizer this run needs, once per machine and environment."""
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder

    if config.engine.offload_optimizer != "none":
        builder = CPUAdamBuilder()
    elif device.type == "cuda":
        builder = FusedAdamBuilder()
    else:
        return
    cache = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "deberta_scale.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in cache.rglob("lock"):
            print(f"cleared the lock of a build that was killed: {stale}", file=sys.stderr)
            shutil.rmtree(stale.parent)
        builder.load(verbose=False)
