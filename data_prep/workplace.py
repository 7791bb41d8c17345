"""Where units of work are done and put together: `OUT.partial/`, until the whole is renamed to OUT.

    plan.json        what is being made of which input; another plan does not go on here
    units/NNNNNN/    a finished unit: renamed into place when all its files are on disk, never changed afterwards
    result/          the output while it is put together, from links to the units' files

Looking for duplicates has such a place of its own, with other passes: see repeats.py.

A process killed at any moment leaves whole units and rubbish of its own name; the same command goes on with the rest.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deberta_scale.durable import refuse_used, sync, write_durably

TRAIN, VALIDATION = SPLITS = ("train", "validation")
"""Directories in OUT."""
PREPARATION_FILE = "preparation.json"
FRAGMENT_FILE = "fragment.json"


@dataclass(frozen=True)
class Units:
    """The finished units of one pass over the input, `root/NNNNNN/`: renamed into place when all their files are on
    disk, never changed afterwards."""

    root: Path

    def directory(self, number: int) -> Path:
        return self.root / f"{number:06d}"

    def is_done(self, number: int) -> bool:
        return self.directory(number).exists()

    @contextmanager
    def writing(self, number: int) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Give a directory to write a unit's files into and a dict to tell of them; both are there for good, together,
        when the block ends well."""
        final = self.directory(number)
        own = final.with_name(f"{final.name}.{_own_name()}")
        shutil.rmtree(own, ignore_errors=True)
        self.root.mkdir(exist_ok=True)
        own.mkdir()
        fragment: dict[str, Any] = {}
        try:
            yield own, fragment
            write_durably(own / FRAGMENT_FILE, json.dumps(fragment))
            for path in [*own.iterdir(), own]:
                sync(path)
            try:
                own.rename(final)
            except OSError:  # another process of the same plan was first, with the same bytes
                if not final.exists():
                    raise
                shutil.rmtree(own)
            sync(final.parent)
        except BaseException:
            shutil.rmtree(own, ignore_errors=True)
            raise

    def fragment(self, number: int) -> dict[str, Any]:
        """What a finished unit tells of itself."""
        content: dict[str, Any] = json.loads((self.directory(number) / FRAGMENT_FILE).read_text(encoding="utf-8"))
        return content


class Workplace:
    def __init__(self, out: Path, plan: dict[str, Any]) -> None:
        """`plan`: everything that decides the bytes of the result, as JSON."""
        self.out = out.resolve()
        self.partial = self.out.with_name(self.out.name + ".partial")
        self._plan = json.loads(json.dumps(plan))

    @property
    def units(self) -> Units:
        """Of the pass that writes shards."""
        return Units(self.partial / "units")

    @property
    def told_plan(self) -> dict[str, Any]:
        """The plan without what differs between machines for the same input."""
        return {
            key: [{k: v for k, v in item.items() if k != "modified_ns"} for item in value] if key == "input" else value
            for key, value in self._plan.items()
        }

    @property
    def is_published(self) -> bool:
        """Whether OUT is the result of this very plan."""
        path = self.out / PREPARATION_FILE
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found.get("plan") == self.told_plan

    def open(self) -> None:
        """Begin, or go on with what a killed run of the same plan left.

        Raises ValueError when OUT is in use, or when what was left is of another plan.
        """
        refuse_used(self.out)
        self.partial.mkdir(parents=True, exist_ok=True)
        path = self.partial / "plan.json"
        if not path.exists():
            own = path.with_name(f"plan.json.{_own_name()}")
            own.write_text(json.dumps(self._plan, indent=1), encoding="utf-8")
            sync(own)
            own.rename(path)  # by several at once, all with the same content
        if json.loads(path.read_text(encoding="utf-8")) != self._plan:
            raise ValueError(
                f"{self.partial} was left by a run with another input, tokenizer or options; run that command again to"
                " finish it, or remove the directory"
            )

    def publish(self, fill: Callable[[Path], dict[str, Any]]) -> None:
        """Let `fill` put the result together in an empty directory, and rename it to OUT; what it returns is written
        into `preparation.json` beside the plan. Killed anywhere, the next run does it again from the units."""
        result = self.partial / "result"
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir()
        facts = fill(result)
        write_durably(result / PREPARATION_FILE, json.dumps({"plan": self.told_plan, **facts}, indent=1) + "\n")
        for path in [*result.rglob("*"), result]:
            sync(path)
        if self.out.exists():
            self.out.rmdir()  # empty, or refuse_used would have refused it
        result.rename(self.out)
        sync(self.out.parent)
        self.discard()

    def discard(self) -> None:
        """Remove all that is not published; killed meanwhile, no half of it is taken for finished."""
        removed = self.partial.with_name(f"{self.partial.name}.removed")
        shutil.rmtree(removed, ignore_errors=True)  # what a kill left
        with suppress(OSError):
            self.partial.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def take_over(source: Path, destination: Path) -> None:
    """Put a unit's file under a second name; where the file system has no links, copy it."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def _own_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}.tmp"
