"""What a run will need before a machine is touched: `python launch/plan.py CONFIG [key=value ...] [--world-size N]`.

Prints parameters, tokens, the batch split, memory per rank, FLOPs, days at a sustained rate, and disk. Needs no torch
and no GPU. Exit codes: 0, or 1 for a config that cannot run, said in one message.
"""

import argparse
import dataclasses
import json
import shlex
import sys

from deberta_scale.config import Config, ConfigError, describe
from deberta_scale.config_file import load
from deberta_scale.plan import DEFAULT_TFLOPS_PER_RANK, MAX_LIVE_PARAMETERS, Memory, Plan, make_plan

RANKS_OF_ONE_MACHINE = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, for instance configs/pretrain/base.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it, for instance train.steps=100")
    parser.add_argument("--world-size", type=int, default=1, metavar="N", help="number of ranks (default: 1)")
    parser.add_argument(
        "--tflops-per-rank",
        type=float,
        metavar="RATE",
        help="sustained TFLOP/s of a rank, recomputation not counted, for the estimate of time"
        f" (default: {DEFAULT_TFLOPS_PER_RANK:g}, an assumption)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_intermixed_args()
    try:
        config = load(arguments.config, arguments.overrides)
        plan = make_plan(config, arguments.world_size, arguments.tflops_per_rank)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    command = next_command(arguments.config, arguments.overrides, plan)
    if arguments.json:
        print(json.dumps(as_json(config, plan) | {"next": command}))
    else:
        print("\n".join([*as_text(arguments.config, config, plan), f"next: {command}"]))
    return 0


def as_json(config: Config, plan: Plan) -> dict[str, object]:
    """Every number of the plan; sizes in bytes."""
    tree = dataclasses.asdict(plan)
    tree["parameters"] |= {"total": plan.parameters.total, "released": plan.parameters.released}
    tree["memory"] |= {"device_peak": plan.memory.device_peak, "host": plan.memory.host}
    tokens = {"tokens_per_step": config.tokens_per_step, "tokens": config.tokens_per_step * config.train.steps}
    return tree | tokens | {"steps": config.train.steps}


def as_text(path: str, config: Config, plan: Plan) -> list[str]:
    ranks = "1 rank (more with --world-size N)" if plan.world_size == 1 else f"{plan.world_size} ranks"
    return [
        f"{path} on {ranks}",
        *_section("parameters", _parameter_lines(plan)),
        *_section("run", _run_lines(config, plan)),
        *_section("memory of each rank, GB = 1e9 bytes, computed and not measured", _memory_lines(config, plan)),
        *_section("compute", _compute_lines(plan)),
        *_section("disk", _disk_lines(config, plan)),
        "",
    ]


def next_command(path: str, overrides: list[str], plan: Plan) -> str:
    on_one_machine = plan.world_size <= RANKS_OF_ONE_MACHINE
    ranks = f"--num_gpus {plan.world_size}" if on_one_machine else "--hostfile HOSTFILE"
    return f"deepspeed {ranks} launch/pretrain.py {shlex.join([path, *overrides])}"


def _section(title: str, lines: list[tuple[str, str, str]]) -> list[str]:
    return ["", title] + [f"  {name:<26}{value:>14}  {note}".rstrip() for name, value, note in lines]


def _parameter_lines(plan: Plan) -> list[tuple[str, str, str]]:
    count = plan.parameters
    return [
        ("total with the head", f"{count.total / 1e6:.1f}M", f"{count.total:,}"),
        ("  word embeddings", f"{count.word_embeddings / 1e6:.2f}M", "also the decoder of the head"),
        ("  position embeddings", f"{count.position_embeddings / 1e6:.2f}M", ""),
        ("  encoder", f"{count.encoder / 1e6:.2f}M", ""),
        ("  relative table", f"{count.relative_table / 1e6:.2f}M", ""),
        ("  head", f"{count.head / 1e6:.2f}M", "without the tied decoder"),
        ("  embedding LayerNorm", f"{count.other / 1e6:.2f}M", "and the projection of narrow word embeddings"),
        ("without position and head", f"{count.released / 1e6:.1f}M", "what stock transformers loads"),
    ]


def _run_lines(config: Config, plan: Plan) -> list[tuple[str, str, str]]:
    tokens = config.tokens_per_step * config.train.steps
    split, step, run = describe(config, plan.world_size).split("; ")
    lines = [
        ("steps", f"{config.train.steps:,}", run),
        ("token places", _count(tokens), f"padding included; {step}"),
        ("sequences a step", f"{config.batch.sequences:,}", split),
    ]
    missing = [f"{key} {directory}" for key, directory in config.data.directories.items() if not directory.exists()]
    if plan.data_tokens is None or plan.epochs is None:
        return [*lines, ("epochs", "unknown", f"{', '.join(missing)} does not exist yet")]
    of = ", ".join(str(directory / "train") for directory in config.data.directories.values())
    note = f"over the {plan.data_tokens:,} tokens of {of}; at most, rows hold padding too"
    return [*lines, ("epochs", f"{plan.epochs:,.2f}", note)]


def _memory_lines(config: Config, plan: Plan) -> list[tuple[str, str, str]]:
    memory, engine = plan.memory, config.engine
    checkpointed = engine.activation_checkpointing != "none"
    other_mode = plan.activations_without_checkpointing if checkpointed else plan.activations_with_checkpointing
    micro_batch = f"of {config.batch.micro_sequences} rows"
    scores = (
        f"{micro_batch}; {_size(other_mode)} {'without' if checkpointed else 'with'} checkpointing;"
        f" each layer's fp32 attention scores take {_size(plan.fp32_scores_per_layer)} of it"
    )
    lines = [
        ("parameters", "parameters", f"ZeRO stage {engine.zero_stage}, {engine.precision}"),
        ("gradients", "gradients", ""),
        ("optimizer states", "optimizer", "fp32 master weights and two moments"),
        ("gathered parameters", "gathered", f"at most: those used again within {_count(MAX_LIVE_PARAMETERS)} others"),
        ("reduce bucket", "reduce_bucket", "gradients summed over ranks at a time"),
        ("activations kept", "activations", scores),
        ("recomputed layer", "recomputed", "at a time, in backward"),
        ("attention work space", "attention_work", "estimate: fp32 matrices of one layer's backward"),
        ("logits of the head", "logits", "fp32, at predicted tokens only; not at the same time as the two above"),
        ("fp32 gradients", "fp32_gradients", "in the update, when activations are gone"),
    ]
    held = [(title, _size(getattr(memory, name)), _place(memory, name) + note) for title, name, note in lines]
    host = [("on the host", _size(memory.host), "offloaded")] if memory.on_host else []
    return [
        *held,
        ("peak on the device", _size(memory.device_peak), "without fragmentation and the runtime's own memory"),
        *host,
        ("on the host at start", _size(plan.model_at_start), "the whole model in fp32, before it is divided"),
    ]


def _compute_lines(plan: Plan) -> list[tuple[str, str, str]]:
    origin = "an ASSUMPTION, not measured; give --tflops-per-rank" if plan.tflops_assumed else "as given"
    return [
        ("FLOPs a step", f"{plan.flops_per_step:.3e}", "forward and backward, recomputation not counted"),
        ("FLOPs of the run", f"{plan.flops:.3e}", ""),
        ("time", _duration(plan.days), f"at {plan.tflops_per_rank:g} TFLOP/s sustained by each rank ({origin})"),
    ]


def _disk_lines(config: Config, plan: Plan) -> list[tuple[str, str, str]]:
    num_checkpoints = config.train.keep_checkpoints + 1
    return [
        ("a checkpoint", _size(plan.checkpoint), "weights and all optimizer states, over all ranks"),
        ("checkpoints", _size(plan.checkpoint * num_checkpoints), f"{num_checkpoints - 1} kept, one being written"),
        ("exported weights", _size(plan.export), "fp32, without optimizer states"),
    ]


def _place(memory: Memory, name: str) -> str:
    return "on the host; " if name in memory.on_host else ""


def _count(number: int) -> str:
    return f"{number / 1e9:,.1f}B" if number >= 1e9 else f"{number / 1e6:,.1f}M"


def _duration(days: float) -> str:
    if days >= 2:
        return f"{days:,.1f} days"
    return f"{days * 24:.1f} hours" if days * 24 >= 2 else f"{days * 1440:.1f} minutes"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
