"""Config → engine. The only place that imports deepspeed, and where its traps are closed.

- On a CPU its shared-memory collective leaks 66 MiB of /dev/shm per rank and start; it is switched off, gloo remains.
- A process killed while building an extension leaves a lock on which every later run waits for ever. Builds happen
  here, under a file lock that the kernel releases with its owner, after clearing what a dead owner left.
- `memory_efficient_linear` changes the numerics of stage 3; off, all stages compute the same.
- It loads torch's compiler for an optimizer that is not used here; not so while an engine is built.
- It refuses fp16 on CPUs without instructions for it, where torch computes the same, slower.
- Its fused Adam does not resume bit for bit on a CPU; torch's AdamW does.

An engine is built empty: its weights come afterwards, fresh, from another model or from a checkpoint, all by the same
way: into the fp32 masters, each rank its share. So no rank ever holds a whole model that it would divide.
"""

import contextlib
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch

from deberta_scale.config import ConfigError, RunConfig
from deberta_scale.extension_cache import building_alone, cache_directory, clear_killed_builds
from deberta_scale.kernels import choice, cpu_build
from deberta_scale.model.sizes import parameter_count
from deberta_scale.train import allocator, distributed, offload_directory
from deberta_scale.train.distributed import announce, open_control_group
from deberta_scale.train.engine_json import deepspeed_json, refuse_without_effect
from deberta_scale.train.launch_environment import Launch
from deberta_scale.train.optim import FRACTION, parameter_groups

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def start_process_group(launch: Launch, timeout_seconds: float = 3600.0) -> torch.device:
    """Join the other ranks, unless that was done; returns this rank's device. NCCL on GPUs; gloo on CPUs or with
    DS_ACCELERATOR=cpu. A rank that is waited for longer than the timeout makes a collective fail."""
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    cache_directory()
    import deepspeed

    if on_gpu:
        device = torch.device("cuda", launch.local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    if torch.distributed.is_initialized():
        return device
    announce(launch)
    deepspeed.utils.logging.logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # names DeepSpeed still uses
    timeout = timedelta(seconds=timeout_seconds)
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False, timeout=timeout)
    open_control_group(timeout)
    return device


def build_engine(config: RunConfig, model: torch.nn.Module, launch: Launch, device: torch.device) -> Any:
    """Wrap `model`, on the meta device, in a DeepSpeed engine whose weights are still to be set.

    Raises ValueError on all ranks when the machine lacks what the config asks for.
    """
    import deepspeed

    distributed.together(lambda: _prepare_machine(config, launch, device))
    generated = distributed.together(lambda: deepspeed_json(config, launch.world_size, device.type == "cuda"))
    materialise(model, generated, device, DTYPES[config.engine.precision])
    optimizer = config.optimizer
    with _nothing_compiled():
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameter_groups(model.named_parameters(), optimizer.weight_decay, optimizer.layer_decay),
            config=generated,
            dist_init_required=False,
        )
    return engine


@contextlib.contextmanager
def _nothing_compiled() -> Iterator[None]:
    """`torch.compile` gives back what it is given. DeepSpeed compares each optimizer with its own Muon, whose functions
    ask to be compiled when they are imported, and torch's compiler takes more than a second to load."""

    def as_it_is(function: Any = None, **options: Any) -> Any:
        return as_it_is if function is None else function

    before = torch.compile
    torch.compile = as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = before


def materialise(model: torch.nn.Module, generated: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
    """Give the parameters of a model on the meta device memory, without values, module by module; in stage 3 each
    module's are divided before the next one's are made. `generated` is DeepSpeed's configuration."""
    import deepspeed

    model.to(dtype)
    divides = generated["zero_optimization"]["stage"] == 3
    divided = deepspeed.zero.Init(config_dict_or_path=generated, dtype=dtype) if divides else None
    for module in model.modules():
        module.to_empty(device=device, recurse=False)
        if divided is not None:
            divided._convert_to_zero_parameters(module.parameters(recurse=False))


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Use this rate for the next update, each parameter group its fraction of it."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate * group[FRACTION]


def _prepare_machine(config: RunConfig, launch: Launch, device: torch.device) -> None:
    """Everything on this machine that building an engine relies on. Raises ConfigError."""
    engine = config.engine
    refuse_without_effect(engine, launch, device.type == "cuda")
    _build_extensions(config, device)
    if engine.offload_directory is not None:
        share = math.ceil(parameter_count(config.model).total / launch.world_size)
        offload_directory.claim(engine.offload_directory, launch.rank, share, launch.local_world_size)
        allocator.return_freed_memory()
    elif device.type == "cpu":
        allocator.keep_freed_memory()


def _build_extensions(config: RunConfig, device: torch.device) -> None:
    """Build the compiled parts this run needs, once per machine and environment. A run without that of attention is
    slower, and says so; one that lacks another is refused."""
    dtype = DTYPES[config.engine.precision]
    if device.type == "cpu" and config.engine.attention in ("auto", "cpu"):
        cpu_build.why_not(dtype)
    try:
        choice.ask_for(config.engine.attention, device, dtype)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder

    builders: list[Any] = []
    if config.engine.offload_optimizer == "disk":
        builders.append(_asynchronous_io())
    if config.engine.offload_optimizer != "none":
        builders.append(CPUAdamBuilder())
    elif device.type == "cuda":
        builders.append(FusedAdamBuilder())
    if builders:
        _build(builders)


def build_ahead() -> None:
    """Compile, ahead of any run, what runs on CPUs and optimizers in the host's memory and on its disk need: minutes,
    once."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    cache_directory()
    cpu_build.why_not(torch.float32)
    from deepspeed.ops.op_builder import CPUAdamBuilder

    _build([CPUAdamBuilder(), *([_asynchronous_io()] if disk_offload_is_possible() else [])])


def _build(builders: list[Any]) -> None:
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise ConfigError(
            "this run's optimizer is compiled at the first start, and there is no C++ compiler: install the Debian"
            " package g++"
        )
    cache = cache_directory()
    with building_alone(cache):
        clear_killed_builds(cache)
        for builder in builders:
            builder.load(verbose=False)


def disk_offload_is_possible() -> bool:
    """Whether this machine has the library, with its headers, that `engine.offload_optimizer disk` is built on."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(AsyncIOBuilder().is_compatible())


def _asynchronous_io() -> Any:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not disk_offload_is_possible():
        raise ConfigError(
            "engine.offload_optimizer disk needs the library libaio and its headers: install the Debian package"
            " libaio-dev, or use cpu"
        )
    return AsyncIOBuilder()
