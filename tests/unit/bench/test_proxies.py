"""Where nginx is missing, the bench ends with a sentence that tells how to install it."""

import shutil
from typing import Any

import pytest

from bench import compare, proxies
from bench.programs import BenchFailed


@pytest.fixture
def without_nginx(monkeypatch: pytest.MonkeyPatch) -> None:
    def which(name: str, **_: Any) -> str | None:
        return None if name == "nginx" else name

    monkeypatch.setattr(shutil, "which", which)


@pytest.mark.usefixtures("without_nginx")
def test_it_says_how_nginx_is_installed() -> None:
    with pytest.raises(BenchFailed, match="apt-get install nginx-light"):
        proxies.nginx_program()


@pytest.mark.usefixtures("without_nginx")
def test_nothing_is_measured_without_nginx(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([]) == 1
    assert (
        capsys.readouterr().out.strip().endswith("apt-get install nginx-light (or your system's package of that name)")
    )
