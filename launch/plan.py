"""What a run will need before a machine is touched: `python launch/plan.py CONFIG [key=value ...] [--world-size N]`.

Prints parameters, tokens, the batch split, memory per rank, traffic, FLOPs, days, disk, and how often to save; with
`--machine NAME --nodes N` for nodes of a known kind. Needs no torch and no GPU. What it says is computed;
`launch/pretrain.py CONFIG --rehearse` measures. Exit codes: 0, or 1 for a config that cannot run or does not fit the
machine, said in one message.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from deberta_scale.config import Config, ConfigError
from deberta_scale.config_file import load
from deberta_scale.plan import DEFAULT_TFLOPS_PER_RANK, Hardware, Plan, make_plan
from deberta_scale.plan_machine import MACHINES, machine_named
from deberta_scale.plan_saving import NODE_HOURS_BETWEEN_FAILURES, WRITE_RATE
from deberta_scale.plan_text import as_text, does_not_fit, warnings


def main() -> int:
    arguments = parse_arguments()
    try:
        world_size = ranks(arguments)
        config = load(arguments.config, arguments.overrides)
        plan = make_plan(config, world_size, hardware(arguments))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    command = next_command(arguments.config, arguments.overrides, plan)
    problem = does_not_fit(plan)
    if arguments.json:
        print(json.dumps(as_json(config, plan) | {"problem": problem, "next": command}))
    else:
        told = [f"warning: {text}" for text in warnings(plan)]
        print("\n".join([*as_text(arguments.config, config, plan), *told, f"next: {command}"]))
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)
    return 0 if problem is None else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    named = [f"{machine.gpus} x {name}" for name, machine in MACHINES.items()]
    add("config", help="YAML file, for instance configs/pretrain/base.yaml")
    add("overrides", nargs="*", metavar="key=value", help="changes to it, for instance train.steps=100")
    add("--world-size", type=int, metavar="N", help="number of ranks (default: 1)")
    add("--machine", metavar="NAME", help=f"plan for nodes of {', '.join(named)}")
    add("--nodes", type=int, metavar="N", help="number of them (default: 1)")
    add(
        "--network-gbit",
        type=float,
        metavar="GBIT",
        help="what a node sends to others a second (default: the machine's)",
    )
    add(
        "--tflops-per-rank",
        type=float,
        metavar="RATE",
        help="measured TFLOP/s of a rank over whole steps, communication included and recomputation not counted"
        f" (default: {DEFAULT_TFLOPS_PER_RANK:g}, an assumption, or what the machine's model says)",
    )
    add(
        "--write-rate",
        type=float,
        default=WRITE_RATE / 1e9,
        metavar="GB",
        help="GB/s that all ranks together write to disk (default: %(default)g, an assumption)",
    )
    add("--blocked-seconds", type=float, metavar="S", help="of training for a save, as a run or a rehearsal logs it")
    add(
        "--node-hours-between-failures",
        type=float,
        default=NODE_HOURS_BETWEEN_FAILURES,
        metavar="H",
        help="of one node, or until the queue takes it away (default: %(default).0f, as in Llama 3's training)",
    )
    add("--json", action="store_true", help="print one JSON object instead")
    return parser.parse_intermixed_args()


def ranks(arguments: argparse.Namespace) -> int:
    """Number of them. Raises ConfigError for options that contradict each other or have no effect."""
    if arguments.machine is None:
        for name in ("nodes", "network_gbit"):
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} has an effect with --machine only")
        return 1 if arguments.world_size is None else arguments.world_size
    if arguments.world_size is not None:
        raise ConfigError("--world-size: a rank for each GPU follows from --machine; give --nodes instead")
    nodes = 1 if arguments.nodes is None else arguments.nodes
    if nodes < 1:
        raise ConfigError(f"--nodes {nodes}: a run has at least 1 node")
    return nodes * machine_named(arguments.machine).gpus


def hardware(arguments: argparse.Namespace) -> Hardware:
    return Hardware(
        machine=arguments.machine,
        network_gbit=arguments.network_gbit,
        tflops_per_rank=arguments.tflops_per_rank,
        write_rate=arguments.write_rate * 1e9,
        blocked_seconds=arguments.blocked_seconds,
        node_hours_between_failures=arguments.node_hours_between_failures,
    )


def as_json(config: Config, plan: Plan) -> dict[str, object]:
    """Every number of the plan; sizes in bytes, times in seconds unless they are called days."""
    batch = {"sequences": config.batch.sequences, "micro_sequences": config.batch.micro_sequences}
    given = batch | {"save_every_steps": config.train.save_every_steps}
    return given | as_tree(plan) | {"warnings": warnings(plan)}


def as_tree(value: Any) -> Any:
    """A dataclass as a dictionary of its fields and its properties, which are numbers as good as those."""
    if isinstance(value, tuple):
        return [as_tree(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return str(value) if isinstance(value, Path) else value
    properties = [name for name, member in vars(type(value)).items() if isinstance(member, property)]
    names = [*(field.name for field in dataclasses.fields(value)), *properties]
    return {name: as_tree(getattr(value, name)) for name in names}


def next_command(path: str, overrides: list[str], plan: Plan) -> str:
    ranks = f"--num_gpus {plan.world_size}" if plan.saving.nodes == 1 else "--hostfile HOSTFILE"
    return f"deepspeed {ranks} launch/pretrain.py {shlex.join([path, *overrides])}"


if __name__ == "__main__":
    sys.exit(main())
