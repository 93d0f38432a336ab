"""README.md and docs are true: examples run as they stand, figures are the measured ones.

Every other quoted command is fed to its parser: test_quoted_commands.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCS = "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
EXAMPLES = list(dict.fromkeys(re.findall(r"<!-- runs -->\n```(sh|python)\n(.*?)```", README + DOCS, re.DOTALL)))
COMMANDS = {"thinwire-edge": "edge.cli", "thinwire-cloud": "cloud.cli", "thinwire-export": "export.cli"}


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("torch")
    from cloud.front.server import background_server
    from cloud.networks.assemble import open_engine
    from thinwire.bundle import shipped_bundles

    with (
        open_engine("clip-lite", list(shipped_bundles().values()), "cpu", 1) as engine,
        background_server(engine) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder as the reader has it: photographs, the commands on PATH, the repository's models."""
    folder = tmp_path_factory.mktemp("desk")
    wheel = Path(importlib.util.find_spec("skimage").origin).parent / "data"
    (folder / "photos").mkdir()
    (folder / "cat.png").write_bytes((wheel / "chelsea.png").read_bytes())
    for name in ("astronaut.png", "coffee.png", "rocket.jpg"):
        (folder / "photos" / name).write_bytes((wheel / name).read_bytes())
    (folder / "thinwire").symlink_to(ROOT / "thinwire")
    (folder / "bin").mkdir()
    for command, module in COMMANDS.items():
        script = folder / "bin" / command
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        script.chmod(0o755)
    return folder


@pytest.mark.parametrize(("language", "code"), EXAMPLES)
def test_examples_run_as_written(language, code, address, desk):
    code = code.replace("127.0.0.1:50051", address)
    words = ["bash", "-euc", code] if language == "sh" else [sys.executable, "-c", code]
    path = f"{desk / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=desk, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if "cat.png" in code and "dog" in code:
        assert "cat" in done.stdout


def test_there_are_examples():
    assert {language for language, _ in EXAMPLES} == {"sh", "python"}


def test_figures_are_the_measured_ones():
    done = subprocess.run(
        [sys.executable, "scripts/readme_figures.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
