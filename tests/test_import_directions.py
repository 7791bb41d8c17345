"""Imports run one way, as docs/architecture.md draws them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "deberta_scale"

PLAN_PARTS = {f"plan_{part}" for part in ("communication", "data", "machine", "memory", "saving")}
ALLOWED = {
    "config_data": set(),
    "config_engine": {"config_data"},
    "config": {"config_data", "config_engine"},
    "config_sift": {"config_data"},
    "config_finetune": {"config", "config_data", "config_sift"},
    "config_file": {"config"},
    "durable": set(),
    "extension_cache": set(),
    "batch": set(),
    "plan": {"config", "model.sizes", "train.buffers", *PLAN_PARTS},
    "plan_data": {"config"},
    "plan_memory": {"config", "model.sizes", "train.buffers"},
    "plan_communication": {"config", "model.sizes", "plan_memory", "train.buffers"},
    "plan_saving": {"config", "model.sizes", "plan_memory"},
    "plan_machine": {"config", "plan_communication", "plan_memory"},
    "plan_text": {"config", "plan", "plan_machine", "plan_memory"},
    "rehearsal": {"config", "model.pretraining", "plan", "plan_text", "train"},
    "finetuning": {"config_finetune", "convert", "finetune", "train"},
    "doctor": {"durable", "extension_cache", "kernels.cpu_build"},
    "doctor_ranks": {"doctor", "train"},
    "doctor_records": set(),
    "doctor_run": {"doctor_records"},
    "data": {"config", "durable", "batch", "data"},
    "kernels": {"kernels", "extension_cache"},
    "model": {"config", "batch", "kernels", "model"},
    "train": {"config", "durable", "extension_cache", "batch", "data", "kernels", "model", "train"},
    "finetune": {"config", "config_finetune", "config_sift", "durable", "batch", "data", "model", "train", "finetune"},
    "convert": {
        "config",
        "config_file",
        "durable",
        "batch",
        "data.tokenizer",
        "data.tokenizer_byte_pair",
        "data.tokenizer_pieces",
        "finetune.heads",
        "finetune.readers",
        "finetune.result",
        "finetune.tasks",
        "model",
        "train.checkpoint",
        "train.fragments",
        "convert",
    },
    "evaluation": {"config", "data.tokenizer", "model", "finetune", "convert", "evaluation"},
}
"""What each room may import of the package: whole rooms, or single modules."""

SINGLE_IMPORTERS = {"deepspeed": {"deberta_scale/train/engine.py"}, "mpi4py": {"deberta_scale/train/distributed.py"}}
TORCH_FREE = {
    "config.py",
    "config_data.py",
    "config_engine.py",
    "config_file.py",
    "config_sift.py",
    "config_finetune.py",
    "plan.py",
    "plan_text.py",
    *(f"{part}.py" for part in PLAN_PARTS),
    "doctor_records.py",
    "doctor_run.py",
    "model/sizes.py",
    "finetune/result.py",
    "finetune/sweep.py",
    "train/buffers.py",
    "extension_cache.py",
    "train/launch_environment.py",
}


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_files() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


@pytest.mark.parametrize("path", package_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_the_rooms_before_it(path: Path) -> None:
    room = path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        assert not path.read_text().strip()
        return
    for name in imports_of(path):
        top, _, inside = name.partition(".")
        assert top not in ("launch", "data_prep", "tests"), f"imports {name}"
        if top == PACKAGE:
            assert any(f"{inside}.".startswith(f"{allowed}.") for allowed in ALLOWED[room]), f"imports {name}"
        if top in SINGLE_IMPORTERS:
            assert str(path.relative_to(ROOT)) in SINGLE_IMPORTERS[top], f"imports {name}"
        if str(path.relative_to(ROOT / PACKAGE)) in TORCH_FREE:
            assert top not in ("torch", "deepspeed"), f"imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "data_prep").glob("*.py")), ids=lambda path: path.name)
def test_data_preparation_needs_neither_torch_nor_the_training_rooms(path: Path) -> None:
    for name in imports_of(path):
        assert not name.startswith(("torch", "deepspeed", "launch"))
        if name.startswith(PACKAGE):
            rooms = (
                "config",
                "durable",
                "data.shards",
                "data.tokenizer",
                "data.packing",
                "data.assembly",
                "data.masking",
                "data.sources",
            )
            assert name.startswith(tuple(f"{PACKAGE}.{room}" for room in rooms))


def test_no_file_is_too_large_to_know() -> None:
    tracked = [path for folder in (PACKAGE, "launch", "data_prep", "tests") for path in (ROOT / folder).rglob("*.py")]
    too_large = {str(path.relative_to(ROOT)): n for path in tracked if (n := len(path.read_text().splitlines())) > 350}
    assert not too_large
