"""Systems without a home, and without what Unix alone has: an answer or a clear word, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WITHOUT = "import sys; sys.modules[{module!r}] = None; from {room}.cli import main; sys.exit(main({words!r}))"
HOMELESS = """
import os, pwd, sys
os.environ.pop("HOME", None)
def nobody(*_):
    raise KeyError("getpwuid(): uid not found: 12345")
pwd.getpwuid = pwd.getpwnam = nobody
from cloud.engine.text_heads import default_cache_dir
folder = default_cache_dir()
folder.mkdir(parents=True)
print(folder == default_cache_dir(), folder)
"""


def python(code: str) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key != "THINWIRE_CACHE"}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("room", "words"),
    [
        ("edge", ["run", "in", "--labels", "a,b"]),
        ("edge", ["doctor"]),
        ("edge", ["status", "--spool", "s.db"]),
    ],
)
def test_a_system_without_unix_is_named(room, words):
    done = python(WITHOUT.format(module="fcntl", room=room, words=words))
    if done.returncode == 0:
        return  # it does without
    assert "Linux and macOS, not on Windows" in done.stderr
    assert "Traceback" not in done.stderr
    assert "pip install" not in done.stderr


def test_serve_says_so_on_windows():
    code = "import thinwire.platforms as p, sys; p.is_windows = lambda: True; import cloud.cli as c; "
    code += "c.is_windows = p.is_windows; sys.exit(c.main(['serve', '--port', '0']))"
    done = python(code)
    assert done.returncode == 1
    assert "`thinwire-cloud serve` runs on Linux and macOS, not on Windows" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_is_missing_is_named():
    done = python(
        WITHOUT.format(
            module="onnxruntime", room="edge", words=["encode", "x.png", "-o", "x.twp", "--bundle", "layered"]
        )
    )
    assert "pip install 'thinwire[edge]'" in done.stderr


def test_a_user_without_a_home_has_a_cache_of_the_run():
    done = python(HOMELESS)
    assert done.returncode == 0, done.stderr
    same, folder = done.stdout.split()
    assert same == "True"
    assert not Path(folder).exists()  # it went with its process
