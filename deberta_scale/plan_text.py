"""A plan in words, for people: sections of lines `name  number  note`. Imports no torch."""

from deberta_scale.config import Config, describe
from deberta_scale.plan import ASSUMED_RANKS_PER_NODE, Plan
from deberta_scale.plan_machine import MachinePlan
from deberta_scale.plan_memory import Memory

Line = tuple[str, str, str]


def as_text(path: str, config: Config, plan: Plan) -> list[str]:
    """All lines, the last one empty."""
    ranks = (
        "1 rank (more with --world-size N or --machine NAME)" if plan.world_size == 1 else f"{plan.world_size} ranks"
    )
    machine = (
        []
        if plan.machine is None
        else _section(_machine_title(plan.machine), _machine_lines(config, plan, plan.machine))
    )
    return [
        f"{path} on {ranks}",
        *_section("parameters", _parameter_lines(plan)),
        *_section("run", _run_lines(config, plan)),
        *_section("memory of each rank, GB = 1e9 bytes, computed and not measured", _memory_lines(config, plan)),
        *_section("sent by each rank in a step", _communication_lines(config, plan)),
        *_section("compute", _compute_lines(plan)),
        *machine,
        *_section("checkpoints and disk", _disk_lines(config, plan)),
        "",
    ]


def warnings(plan: Plan) -> list[str]:
    """What the run would refuse when its own count of rows, which is lower, says the same."""
    return [
        f"data.mixture.sources.{source.name}: {source.epochs:,.2f} epochs are more than its max_epochs"
        f" {source.max_epochs:g}; the run counts rows and does not start above that: fewer train.steps, a smaller"
        " weight, more text, or a larger max_epochs"
        for source in plan.sources
        if source.may_be_read_too_often
    ]


def does_not_fit(plan: Plan) -> str | None:
    """Why the named machine cannot run this, and what would fit; None when it can, or none was named."""
    machine = plan.machine
    if machine is None or machine.what_would_fit is None:
        return None
    place = f"each GPU needs {size(machine.device_needed)} and has {size(machine.device_usable)} that can be used"
    if machine.device_needed <= machine.device_usable:
        usable = f"{size(machine.host_usable)} that can be used"
        place = f"the offloaded states of a node need {size(machine.host_needed)}, of {usable}"
    return f"does not fit {machine.machine}: {place}; would fit: {machine.what_would_fit}"


def _section(title: str, lines: list[Line]) -> list[str]:
    return ["", title] + [f"  {name:<26}{value:>14}  {note}".rstrip() for name, value, note in lines]


def _parameter_lines(plan: Plan) -> list[Line]:
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


def _run_lines(config: Config, plan: Plan) -> list[Line]:
    split, step, run = describe(config, plan.world_size).split("; ")
    lines = [
        ("steps", f"{config.train.steps:,}", run),
        ("token places", _count(plan.tokens), f"padding included; {step}"),
        ("sequences a step", f"{config.batch.sequences:,}", split),
    ]
    return [*lines, *_epoch_lines(plan)]


def _epoch_lines(plan: Plan) -> list[Line]:
    """One for each directory of shards that exists, and one for all that do not."""
    lines = [
        (
            f"epochs of {source.name}" if source.name else "epochs",
            f"{source.epochs:,.2f}",
            f"at most; {source.share:.2%} of the samples, {source.tokens:,} tokens in {source.shards / 'train'}",
        )
        for source in plan.sources
        if source.epochs is not None
    ]
    missing = [str(source.shards) for source in plan.sources if source.epochs is None]
    if missing:
        does_not = "does not exist yet" if len(missing) == 1 else "do not exist yet"
        lines.append(("epochs" if not lines else "epochs of others", "unknown", f"{', '.join(missing)} {does_not}"))
    return lines


def _memory_lines(config: Config, plan: Plan) -> list[Line]:
    memory, engine = plan.memory, config.engine
    checkpointed = engine.activation_checkpointing != "none"
    other_mode = plan.activations_without_checkpointing if checkpointed else plan.activations_with_checkpointing
    scores = (
        f"of {config.batch.micro_sequences} rows; {size(other_mode)} {'without' if checkpointed else 'with'}"
        f" checkpointing; each layer's fp32 attention scores take {size(plan.fp32_scores_per_layer)} of it"
    )
    predicted = f"{plan.predicted_in_micro_batch:,} predicted tokens"
    of_logits = f"{predicted} x {config.model.vocab_size:,}; not at the same time as the two above"
    lines = [
        ("parameters", "parameters", f"ZeRO stage {engine.zero_stage}, {engine.precision}"),
        ("gradients", "gradients", "those of a micro-batch, or their sum"),
        ("optimizer states", "optimizer", "fp32 master weights and two moments"),
        ("gathered parameters", "gathered", f"at most: those used again within {_count(plan.buffers.live)} others"),
        ("reduce bucket", "reduce_bucket", "gradients summed over ranks at a time"),
        ("activations kept", "activations", scores),
        ("recomputed layer", "recomputed", "at a time, in backward"),
        ("attention work space", "attention_work", "estimate: fp32 matrices of one layer's backward"),
        ("logits of the head", "logits", of_logits),
        ("fp32 gradients", "fp32_gradients", "in the update, when activations are gone"),
        ("swapped in at a time", "swapped", "in the update, of an optimizer on disk"),
    ]
    held = [
        (title, size(getattr(memory, name)), _place(memory, name) + note)
        for title, name, note in lines
        if getattr(memory, name)
    ]
    offloaded = (
        [("offloaded to the host", size(memory.host), "what is marked so above, together")] if memory.on_host else []
    )
    on_disk = [("on the offload disk", size(memory.disk), "in engine.offload_directory")] if memory.disk else []
    return [
        *held,
        ("peak on the device", size(memory.device_peak), "without fragmentation and the runtime's own memory"),
        *offloaded,
        ("copy for a checkpoint", size(memory.save_copy), "on the host, while it is written, if there is room for it"),
        ("peak on the host", size(memory.host_peak), "without programs and libraries, about 1 GB a rank"),
        *on_disk,
        ("of the model at start", size(plan.model_at_start), "while it is built, without the optimizer"),
    ]


def _communication_lines(config: Config, plan: Plan) -> list[Line]:
    sent, passes = plan.communication, plan.accumulation_steps
    reduces_each = config.engine.zero_stage >= 2
    lines = [
        ("gradients", sent.gradients, f"summed {passes if reduces_each else 1} time(s) a step"),
        ("parameters for forward", sent.gathered_for_forward, f"gathered {passes} time(s)"),
        ("parameters for backward", sent.gathered_for_backward, "those released since forward"),
        ("updated parameters", sent.gathered_after_update, "gathered once"),
    ]
    shown = [(name, size(num_bytes), note) for name, num_bytes, note in lines if num_bytes]
    return [*shown, ("in all", size(sent.total), f"of {plan.world_size} rank(s), in rings")]


def _compute_lines(plan: Plan) -> list[Line]:
    origin = "as given"
    if plan.machine is not None:
        origin = f"on {plan.machine.machine}, {'see below' if plan.machine.model else 'as given'}"
    elif plan.tflops_assumed:
        origin = "an ASSUMPTION, not measured; give --tflops-per-rank or --machine"
    return [
        ("FLOPs a step", f"{plan.flops_per_step:.3e}", "forward and backward, recomputation not counted"),
        ("FLOPs of the run", f"{plan.flops:.3e}", ""),
        ("time", duration(plan.days), f"at {plan.tflops_per_rank:.3g} TFLOP/s sustained by each rank ({origin})"),
        ("", "", "without saves, evaluations, and failures"),
    ]


def _machine_title(machine: MachinePlan) -> str:
    nodes = f"{machine.nodes} node(s) of {machine.gpus_per_node} x {machine.machine}"
    return f"{nodes}, a model with ASSUMPTIONS, not measured"


def _machine_lines(config: Config, plan: Plan, machine: MachinePlan) -> list[Line]:
    return [
        *_time_lines(config, machine),
        (
            "a step",
            _seconds(plan.step_seconds),
            "" if machine.model else "by the rate as given, communication included",
        ),
        ("token places a second", f"{plan.tokens_per_second:,.0f}", "over all ranks, padding included"),
        ("needed on a GPU", size(machine.device_needed), f"{size(machine.runtime_bytes)} of it assumed for CUDA, NCCL"),
        ("  it has", size(machine.device_bytes), f"{size(machine.device_usable)} of it can be used"),
        ("needed on a host", size(machine.host_needed), "offloaded states"),
        (
            "  for checkpoints",
            size(machine.host_copies),
            "besides, if there is room: copies that they are written from",
        ),
        ("  it has", size(machine.host_bytes), f"{size(machine.host_usable)} of it can be used"),
    ]


def _time_lines(config: Config, machine: MachinePlan) -> list[Line]:
    """What a step consists of by the model; nothing when a rate was measured."""
    model = machine.model
    if model is None:
        return []
    of_peak = f"at {model.efficiency:.0%} of {machine.peak_tflops:g} TFLOP/s {config.engine.precision}"
    recomputed = ", one more forward pass" if config.engine.activation_checkpointing != "none" else ""
    link = "NVLink" if machine.nodes == 1 else f"{model.network_gbit:g} Gbit/s a node or NVLink, the slower"
    return [
        ("computing a step", _seconds(model.compute_seconds), f"{of_peak}{recomputed}"),
        ("communicating", _seconds(model.communication_seconds), f"{link}, {model.link_efficiency:.0%} of it reached"),
        ("  of it hidden", _seconds(model.hidden_seconds), f"at most {model.most_hidden:.0%}, while computing"),
    ]


def _disk_lines(config: Config, plan: Plan) -> list[Line]:
    saving, export = plan.saving, plan.export
    seconds, rate = saving.write_seconds, saving.write_rate
    blocked = "assumed" if saving.blocked_assumed else "as given"
    hours = saving.node_hours_between_failures
    nodes = f"{saving.nodes} node(s)" + (f" of {ASSUMED_RANKS_PER_NODE} ranks (assumed)" if plan.nodes_assumed else "")
    return [
        ("a checkpoint", size(saving.checkpoint), "weights and both moments, 12 bytes a parameter, over all ranks"),
        ("checkpoints", size(saving.disk), f"{saving.num_kept} kept at most, one being written"),
        ("writing one", _seconds(seconds), f"at {rate / 1e9:g} GB/s over all ranks (--write-rate)"),
        ("  training waits", _seconds(saving.blocked_seconds), f"{blocked}; the run logs it (--blocked-seconds)"),
        (
            "save about every",
            f"{plan.steps_between_saves:,} steps",
            f"{duration(saving.interval_seconds / 86400)}, Young's interval for {nodes} that each fail"
            f" every {hours:,.0f} hours; the config says {config.train.save_every_steps:,}",
        ),
        ("exported weights", size(export), "fp32, without optimizer states"),
    ]


def _place(memory: Memory, name: str) -> str:
    return "on the host, " if name in memory.on_host else ""


def _count(number: int) -> str:
    return f"{number / 1e9:,.1f}B" if number >= 1e9 else f"{number / 1e6:,.1f}M"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 0.1 or seconds == 0.0 else f"{seconds * 1e3:.2g} ms"


def duration(days: float) -> str:
    """In the unit that fits."""
    if days >= 2:
        return f"{days:,.1f} days"
    if days * 24 >= 2:
        return f"{days * 24:.1f} hours"
    return f"{days * 1440:.1f} minutes" if days * 1440 >= 2 else f"{days * 86400:.1f} seconds"


def size(num_bytes: float) -> str:
    """In GB or MB, of 1e9 and 1e6 bytes."""
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"
