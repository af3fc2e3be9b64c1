"""The Makefile and the pins: a fresh machine gets what was tested, or a sentence that helps."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_pins_are_plain_and_cover_what_the_project_names():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in pins)
    pinned = {re.split("==", line)[0].lower().replace("_", "-") for line in pins}
    named = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert {re.split(r"[^\w-]", line)[0].lower().replace("_", "-") for line in named} <= pinned


@needs_make
@pytest.mark.parametrize("target", ["run", "install", "test", "check", "format"])
def test_make_knows_its_targets(target: str):
    run = make("-n", target)
    assert run.returncode == 0, run.stderr


@needs_make
def test_make_says_what_is_missing_where_python_is_too_old(tmp_path: Path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    run = make("install", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert run.returncode != 0
    assert "Candlery needs Python 3.11 or newer" in run.stderr
    assert not (tmp_path / "venv").exists()
