"""Config → DeepSpeed's JSON: pure functions, so that it can be read before a machine is touched."""

from typing import Any

from deberta_scale.config import ConfigError, EngineConfig, RunConfig
from deberta_scale.train.buffers import SWAPPED_TENSORS, choose_buffers
from deberta_scale.train.launch_environment import Launch


def refuse_without_effect(engine: EngineConfig, launch: Launch, on_gpu: bool) -> None:
    """Raise ConfigError for options of ZeRO++ that would fail here, or change nothing."""
    copies = engine.hpz_partition_size
    if copies > 1 and (copies >= launch.world_size or launch.world_size % copies):
        fits = [n for n in range(2, launch.world_size) if launch.world_size % n == 0]
        raise ConfigError(
            f"engine.hpz_partition_size {copies} must divide the {launch.world_size} ranks and be less; of them fit:"
            f" {', '.join(map(str, [1, *fits]))}"
        )
    for key in ("quantized_weights", "quantized_gradients"):
        if getattr(engine, key) and not on_gpu:
            raise ConfigError(f"engine.{key}: DeepSpeed quantizes on GPUs only; leave it out on CPUs")
        if getattr(engine, key) and engine.precision == "fp32":
            raise ConfigError(f"engine.{key} sends fewer bits than 16; use it with precision bf16 or fp16, not fp32")
    if engine.quantized_weights and launch.world_size == 1:
        raise ConfigError("engine.quantized_weights: a single rank gathers nothing")
    if engine.quantized_gradients and launch.world_size == launch.local_world_size:
        raise ConfigError(
            "engine.quantized_gradients is for sums over several machines; with all ranks on one, DeepSpeed does not"
            " quantize"
        )


def deepspeed_json(config: RunConfig, world_size: int, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for this run."""
    engine, optimizer = config.engine, config.optimizer
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
        "zero_optimization": _zero_json(config, world_size, on_gpu),
        "optimizer": {"type": "AdamW", "params": adam},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if engine.precision == "bf16":
        generated["bf16"] = {"enabled": True}
    if engine.precision == "fp16":
        generated["fp16"] = {"enabled": True, "initial_scale_power": 16, "loss_scale_window": 1000}
    return generated


def _zero_json(config: RunConfig, world_size: int, on_gpu: bool) -> dict[str, Any]:
    engine, buffers = config.engine, choose_buffers(config.model, config.engine, world_size)
    zero: dict[str, Any] = {
        "stage": engine.zero_stage,
        "reduce_bucket_size": buffers.reduce_bucket,
        "overlap_comm": buffers.overlap,
    }
    if engine.zero_stage == 3:
        zero |= {
            "memory_efficient_linear": False,
            "stage3_prefetch_bucket_size": buffers.prefetch,
            "stage3_max_live_parameters": buffers.live,
            "stage3_max_reuse_distance": buffers.live,
            "stage3_param_persistence_threshold": buffers.kept_whole,
            "sub_group_size": buffers.sub_group,
            "zero_hpz_partition_size": engine.hpz_partition_size,
            "zero_quantized_weights": engine.quantized_weights,
            "zero_quantized_gradients": engine.quantized_gradients,
        }
    if engine.offload_optimizer == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if engine.offload_optimizer == "disk":
        path = str(engine.offload_directory)
        zero["offload_optimizer"] = {
            "device": "nvme",
            "nvme_path": path,
            "buffer_count": SWAPPED_TENSORS,
            "pin_memory": False,
        }
    if engine.offload_parameters != "none":
        zero["offload_param"] = {"device": engine.offload_parameters, "pin_memory": on_gpu}
    return zero
