"""Every command the README shows runs, in the order it shows them, on a little text."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deberta_scale.config import ModelConfig
from deberta_scale.convert.hub_config import hub_config
from deberta_scale.convert.huggingface import export
from tests.benchmark_files import write_benchmark
from tests.exporting import CONFIGS, random_model, source_of
from tests.launching import ROOT, free_port
from tests.slurm import write_stand_ins

SMALLER = {
    "--vocab-size 32000": "--vocab-size 600",
    "launch/plan.py configs/pretrain/tiny.yaml": "launch/plan.py configs/pretrain/tiny.yaml SIZES",
    "launch/pretrain.py configs/pretrain/tiny.yaml": "launch/pretrain.py configs/pretrain/tiny.yaml SIZES",
    "configs/pretrain/continue_v3_base.yaml": "configs/pretrain/continue_v3_base.yaml SIZES model.vocab_size=640",
    "configs/finetune/rte.yaml": "configs/finetune/rte.yaml FEWER",
    "mpirun -n 8 ": "mpirun -n 2 ",
    "launch/bench.py loader": "launch/bench.py loader --rows 8 --micro-sequences 4 --slow-rows 2 --turns 1",
    "launch/bench.py prepare": "launch/bench.py prepare --turns 1 --megabytes 1 --slow-megabytes 1",
    "launch/bench.py step --length 128 512": "launch/bench.py step --length 32 --tokens 64 --turns 1",
    "launch/bench.py attention --length 512 2048": "launch/bench.py attention --length 64 --tokens 64 --turns 1",
    "launch/bench.py head": "launch/bench.py head --vocabulary 1000 --tokens 64 --turns 1",
    "deepspeed ": "deepspeed --num_gpus 2 --master_port PORT ",
}
SIZES = (
    "model.hidden_size=32 model.num_hidden_layers=2 model.num_attention_heads=2 model.intermediate_size=64"
    " train.steps=3 train.evaluate_sequences=8 schedule.warmup_steps=1 batch.sequences=8 batch.micro_sequences=2"
)
FEWER = "train.epochs=1 schedule.warmup_steps=1 batch.sequences=4 batch.micro_sequences=2 engine.precision=fp32"
"""What makes the README's commands fit a test. What they are called and how they fit together stays as shown."""


def block(title: str, language: str) -> str:
    """The first block of a language under a heading of the README."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found, f"no {language} under {title!r}"
    return found[1]


def shell_block(title: str) -> list[str]:
    return block(title, "sh").splitlines()


@pytest.fixture
def place(tmp_path: Path, sample_documents: list[str]) -> Path:
    """A directory like a checkout: the tools, and a folder with text."""
    for name in ("launch", "data_prep", "configs", "deberta_scale"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "text").mkdir()
    for number, document in enumerate(sample_documents):
        (tmp_path / "text" / f"{number}.txt").write_text(document.replace("\n", "\n\n"), encoding="utf-8")
    return tmp_path


def run_all(commands: list[str], place: Path) -> list[str]:
    """Run commands one after the other, made smaller; what each printed."""
    environment = os.environ | {
        "PATH": f"{place}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "DS_ACCELERATOR": "cpu",
    }
    outputs = []
    for command in commands:
        for shown, used in SMALLER.items():
            command = command.replace(shown, used)
        words = shlex.split(command.replace("SIZES", SIZES).replace("FEWER", FEWER).replace("PORT", str(free_port())))
        result = subprocess.run(
            words, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200
        )
        assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}"
        outputs.append(result.stdout)
    return outputs


def test_the_path_for_your_own_text_goes_through_to_filled_masks(place: Path) -> None:
    install, *commands = shell_block("Your own text")
    assert install == "pip install --constraint constraints.txt .", "tried by .ci/run in an empty environment"
    outputs = run_all(commands, place)
    assert "finished at step 3" in outputs[-3]
    assert len(outputs[-1].split()) == 10, "five words with their probabilities"


def write_described_sources(place: Path, sample_documents: list[str]) -> None:
    """data.yaml of the README, and the two sources that it names."""
    (place / "data.yaml").write_text(block("Several sources", "yaml"))
    (place / "web").mkdir()
    for number in range(len(sample_documents) // 2):
        (place / "text" / f"{number}.txt").unlink()
        with gzip.open(place / "web" / f"{number}.jsonl.gz", "wt", encoding="utf-8") as file:
            for paragraph in sample_documents[number].split("\n"):
                file.write(json.dumps({"text": paragraph}) + "\n")


def test_described_sources_go_through_to_training_on_their_mixture(place: Path, sample_documents: list[str]) -> None:
    write_described_sources(place, sample_documents)
    outputs = run_all(shell_block("Several sources"), place)
    assert "left out by document_length" in outputs[1]
    assert "configs/pretrain/tiny.yaml, seed" in outputs[2] and (place / "books.html").exists()
    assert "epochs of web" in outputs[3] and "epochs of books" in outputs[3]
    assert "finished at step 3" in outputs[4]


def test_many_machines_share_a_preparation(place: Path, prepared_shards: Path, sample_documents: list[str]) -> None:
    if not Path(sys.executable).with_name("mpirun").exists():
        pytest.skip("no mpirun beside this Python; install the package mpich")
    write_described_sources(place, sample_documents)
    write_stand_ins(place)
    (place / "tokenizer").symlink_to(prepared_shards / "tokenizer")
    for command in shell_block("Many machines"):
        assert "share 0 of 2 (MPI)" in run_all([command], place)[0]
        assert (place / "shards" / "web" / "train" / "manifest.json").exists()
        shutil.rmtree(place / "shards")


def test_what_is_measured_can_be_measured(place: Path, prepared_shards: Path) -> None:
    (place / "shards").symlink_to(prepared_shards)
    (place / "tokenizer").symlink_to(prepared_shards / "tokenizer")
    outputs = run_all(shell_block("Measuring"), place)
    assert ["CPU s" in output for output in outputs] == [True, True, False, False, False]
    assert all("times as fast" in output for output in outputs[2:])
    assert (place / "attention.png").exists()


def test_a_released_model_goes_on_with_new_text(place: Path, prepared_shards: Path) -> None:
    """The released model is one of transformers' own making: no position table, a head of the old form."""
    transformers = pytest.importorskip("transformers", reason="the peers extra is not installed")
    settings = dict(word.removeprefix("model.").split("=") for word in SIZES.split() if word.startswith("model."))
    shape = hub_config(ModelConfig(vocab_size=640)) | {name: int(value) for name, value in settings.items()}
    shape |= {"legacy": True, "embedding_size": shape["hidden_size"], "pooler_hidden_size": shape["hidden_size"]}
    released = transformers.DebertaV2ForMaskedLM(transformers.DebertaV2Config(**shape))
    released.save_pretrained(place / "MODEL")
    shutil.copy(prepared_shards / "tokenizer" / "spm.model", place / "MODEL")
    outputs = run_all(shell_block("Models of others, and ours elsewhere"), place)
    assert "weights from base" in outputs[2] and "position_embeddings.weight: not in base, initialised" in outputs[2]
    assert "finished at step 3" in outputs[2]
    assert (place / "adapted" / "modeling_deberta_scale.py").exists()
    assert (place / "adapted-official" / "pytorch_model.bin").exists()


def test_a_pretrained_model_is_fine_tuned_and_measured(place: Path, prepared_shards: Path) -> None:
    model = random_model(CONFIGS["V3"])
    export(source_of(model, prepared_shards / "tokenizer"), place / "runs" / "mine")
    write_benchmark("rte", place / "rte")
    outputs = run_all(shell_block("Fine-tuning"), place)
    assert "validation/accuracy" in outputs[0] and "accuracy" in outputs[1]
    assert "2 of 2" in outputs[2] and (place / "runs" / "rte-seeds" / "seed-2" / "huggingface").is_dir()


def test_development_commands_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in shell_block("Development") + shell_block("Ten minutes"):
        program, target = line.split("#")[0].split()
        assert program == "make" and target in targets


def test_every_file_the_readme_names_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([^)#:]+)\)", readme)) | set(
        re.findall(r"`((?:configs|launch|docs)/[\w./]+)`", readme)
    )
    named |= {f"configs/pretrain/{name}" for name in re.findall(r"`(\w+\.yaml)`", readme)}
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]
