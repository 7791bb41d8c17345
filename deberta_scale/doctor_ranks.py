"""Whether the ranks of a launch can train together: same versions, one shared directory, clocks, collectives' speed."""

import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import torch

from deberta_scale.doctor import Finding, versions
from deberta_scale.train import distributed
from deberta_scale.train.engine import start_process_group
from deberta_scale.train.launch_environment import Launch

JOIN_SECONDS = 180.0
"""That ranks wait for each other; those of each host look at it first."""
MESSAGE_BYTES = (2**20, 2**24, 2**26)
REPEATS = 3
CLOCK_SECONDS = 5.0
"""Clocks further apart than this are told; stops before the end of a job's time rely on them."""
SLOW_GPU_BYTES_PER_SECOND = 2e9


def examine_together(launch: Launch, directory: Path) -> list[Finding]:
    """Join the other ranks and look at all of them; the same findings on every rank. `directory` is where runs are
    written.

    Raises LaunchError when the ranks cannot agree on where to meet, RuntimeError when they do not meet, or lose one.
    """
    device = start_process_group(launch, JOIN_SECONDS)
    return [same_versions(), same_directory(directory), clocks(), *(all_reduce(size, device) for size in MESSAGE_BYTES)]


def of_all_hosts(findings: list[Finding]) -> list[Finding]:
    """What one rank of each host found there: all of the first host, and of others what is not ok, with their names."""
    by_rank = [item for item in distributed.gather_objects((_host(), findings)) if item[1]]
    (_, first), *others = by_rank
    named = [
        replace(finding, text=f"on {host}: {finding.text}")
        for host, found in others
        for finding in found
        if finding.level != "ok"
    ]
    return [*first, *named]


def same_versions() -> Finding:
    return compare_versions(dict(distributed.gather_objects((_host(), versions()))))


def compare_versions(by_host: dict[str, dict[str, str]]) -> Finding:
    """Of packages, by host."""
    first, *_ = by_host
    differing = [
        f"{host} has {name} {text}, {first} {by_host[first].get(name)}"
        for host, found in by_host.items()
        for name, text in found.items()
        if text != by_host[first].get(name)
    ]
    if differing:
        return Finding("problem", "versions", f"{'; '.join(differing)}; install the same environment everywhere")
    return Finding("ok", "versions", f"the same on {len(by_host)} host(s): {', '.join(by_host)}")


def same_directory(directory: Path) -> Finding:
    """A file that rank 0 writes is seen by all."""
    name = distributed.gather_objects(f".doctor-{os.getpid()}-{time.time_ns()}")[0]
    path = directory / name
    error = distributed.gather_objects(_write(path, name) if torch.distributed.get_rank() == 0 else None)[0]
    seen = distributed.gather_objects((_host(), _reads(path, name)))
    if torch.distributed.get_rank() == 0 and error is None:
        path.unlink(missing_ok=True)
    if error is not None:
        return Finding("problem", "shared directory", f"{directory} cannot be written on {seen[0][0]}: {error}")
    blind = list(dict.fromkeys(host for host, sees in seen if not sees))
    if blind:
        text = (
            f"{directory}: a file written on {seen[0][0]} is not seen on {', '.join(blind)}; run_dir must be on a disk"
        )
        return Finding("problem", "shared directory", f"{text} that all hosts share")
    return Finding("ok", "shared directory", f"{directory}: a file written by rank 0 is seen by all {len(seen)} ranks")


def clocks() -> Finding:
    """How far those of the hosts are apart."""
    distributed.barrier()
    times = distributed.gather_objects((time.time(), _host()))
    apart = max(times)[0] - min(times)[0]
    if apart > CLOCK_SECONDS:
        text = f"{max(times)[1]} is {apart:.0f} seconds before {min(times)[1]}; synchronise them (chrony, ntpd)"
        return Finding("warning", "clocks", text)
    return Finding("ok", "clocks", f"at most {apart:.1f} seconds apart")


def all_reduce(num_bytes: int, device: torch.device) -> Finding:
    """What a ring of all ranks carries, in bytes that leave each rank a second."""
    values = torch.ones(num_bytes // 4, device=device)
    seconds = min(_seconds(values) for _ in range(REPEATS + 1))  # the first one connects
    slowest = max(distributed.gather_objects(seconds))
    ranks = torch.distributed.get_world_size()
    rate = 2 * num_bytes * (ranks - 1) / ranks / slowest
    text = f"{num_bytes / 2**20:.0f} MiB in {slowest * 1e3:.1f} ms: {rate / 1e9:.2f} GB/s leave each of {ranks} ranks"
    is_slow = device.type == "cuda" and num_bytes == max(MESSAGE_BYTES) and rate < SLOW_GPU_BYTES_PER_SECOND
    advice = "; NCCL_DEBUG=INFO tells which network it uses" if is_slow else ""
    return Finding("warning" if is_slow else "ok", "all-reduce", text + advice)


def _seconds(values: torch.Tensor) -> float:
    distributed.barrier()
    start = time.perf_counter()
    torch.distributed.all_reduce(values)
    if values.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _write(path: Path, text: str) -> str | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        return str(error)
    return None


def _reads(path: Path, text: str) -> bool:
    try:
        os.listdir(path.parent)  # has network file systems look anew
        return path.read_text() == text
    except OSError:
        return False


def _host() -> str:
    return socket.gethostname()
