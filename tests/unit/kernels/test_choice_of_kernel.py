"""The fastest kernel that can run is taken, and a fallback says so."""

from collections.abc import Iterator

import pytest
import torch

from deberta_scale.kernels import choice, cpu_build
from deberta_scale.kernels.choice import choose

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_asked_for() -> Iterator[None]:
    yield
    choice.ask_for("auto", CPU, torch.float32)


def test_on_a_processor_with_what_it_needs_the_compiled_kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_build, "why_not", lambda dtype: None)
    assert choose(CPU, torch.bfloat16, all_places_ask=True).name == "cpu"
    assert choose(CPU, torch.bfloat16, all_places_ask=False).name == "cpu"


def test_a_fallback_is_told_once_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choice._tell.cache_clear()
    monkeypatch.setattr(cpu_build, "why_not", lambda dtype: "the compiler is on holiday")
    chosen = [choose(CPU, torch.float32, all_places_ask=every) for every in (True, False, True)]
    assert [found.name for found in chosen] == ["skew", "reference", "skew"]
    assert all("holiday" in found.why for found in chosen)
    assert capsys.readouterr().err.count("holiday") == 1


def test_other_devices_and_types_get_what_runs_there() -> None:
    assert choose(torch.device("cuda"), torch.bfloat16, all_places_ask=True).name == "reference"
    assert "float64" in choose(CPU, torch.float64, all_places_ask=True).why


@pytest.mark.parametrize("name", ["skew", "reference"])
def test_a_kernel_that_is_asked_for_is_used_everywhere(name: str) -> None:
    choice.ask_for(name, CPU, torch.bfloat16)
    for every in (True, False):
        chosen = choose(CPU, torch.bfloat16, all_places_ask=every)
        assert (chosen.name, chosen.attention) == (name, choice.KERNELS[name])
    assert f"engine.attention is {name}" in chosen.why


def test_the_compiled_kernel_is_refused_where_it_does_not_run() -> None:
    with pytest.raises(
        ValueError, match=r"engine.attention cpu: there is no compiled kernel for cuda devices; use auto"
    ):
        choice.ask_for("cpu", torch.device("cuda"), torch.bfloat16)
    with pytest.raises(ValueError, match=r"not torch\.float16"):
        choice.ask_for("cpu", CPU, torch.float16)
