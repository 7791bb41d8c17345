"""What will not work, before it does not: `python launch/doctor.py`; why a run stopped: `... doctor.py RUN_DIR`.

Without a run directory: packages, devices, compilers, disk, clock, limits, MPI of this machine. Started on several
ranks (`deepspeed launch/doctor.py`, torchrun, srun, mpirun), also whether they can train together: versions, a shared
directory, clocks, speed of all-reduce. Exit codes: 0, or 1 when something will not work or the run did not end well.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from deberta_scale.doctor import Finding, examine
from deberta_scale.doctor_run import diagnose
from deberta_scale.train.launch_environment import Launch, LaunchError, is_first, read_launch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", nargs="?", type=Path, metavar="RUN_DIR", help="tell why the run there last stopped")
    parser.add_argument("--directory", type=Path, help="where runs will be written (default: the current one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # appended by the deepspeed launcher
    arguments = parser.parse_args()
    if arguments.run_dir is None:
        return tell_machine(arguments.directory or Path("."), arguments.json)
    if arguments.directory is not None:
        print("error: --directory has no effect with RUN_DIR, which tells of a run: give one of them", file=sys.stderr)
        return 1
    return tell_run(arguments.run_dir, arguments.json)


def tell_run(run_dir: Path, as_json: bool) -> int:
    try:
        found = diagnose(run_dir)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
    else:
        print(f"{found.cause}: {found.why}\nnext: {found.next}")
    return 0 if found.is_well else 1


def tell_machine(directory: Path, as_json: bool) -> int:
    try:
        launch = read_launch(os.environ)
    except LaunchError as error:
        if is_first(os.environ):
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    findings = examine(directory) if launch.local_rank == 0 else []
    met = False
    if launch.world_size > 1:
        findings, met = with_other_ranks(launch, directory, findings)
    failed = any(finding.level == "problem" for finding in findings)
    if launch.is_main and as_json:
        print(json.dumps({"works": not failed, "findings": [dataclasses.asdict(finding) for finding in findings]}))
    elif launch.is_main:
        print("\n".join(f"{finding.level:<8} {finding.what}: {finding.text}" for finding in findings))
        print(
            "next: repair what is called a problem"
            if failed
            else "next: launch/plan.py CONFIG, then launch/pretrain.py"
        )
    if met:
        from deberta_scale.train import distributed

        distributed.barrier()
        distributed.end_process(int(failed))
    return int(failed)


def with_other_ranks(launch: Launch, directory: Path, findings: list[Finding]) -> tuple[list[Finding], bool]:
    """Those of all hosts and of the ranks together, and whether the ranks met; when not, why, said on each host."""
    try:
        # imported late: one host's examination needs no torch, which may be what is missing
        from deberta_scale.doctor_ranks import examine_together, of_all_hosts

        together = examine_together(launch, directory)
        return of_all_hosts(findings) + together, True
    except (LaunchError, ImportError, RuntimeError, OSError) as error:
        if launch.local_rank == 0 and not launch.is_main:
            print(f"error: rank {launch.rank}: the ranks do not meet: {error}", file=sys.stderr, flush=True)
        return [
            *findings,
            Finding("problem", "ranks", f"they do not meet, so they cannot train together: {error}"),
        ], False


if __name__ == "__main__":
    sys.exit(main())
