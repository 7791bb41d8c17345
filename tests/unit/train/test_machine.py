"""What the machine lacks is told by the package that would help."""

import pytest

from deberta_scale.config import ConfigError
from deberta_scale.train import engine


def test_a_missing_library_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "disk_offload_is_possible", lambda: False)
    with pytest.raises(ConfigError, match="Debian package libaio-dev"):
        engine._asynchronous_io()
