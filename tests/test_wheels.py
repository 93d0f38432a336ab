"""Wheels and their coder, as `make wheels` builds them, and whether the edge extra can be had where it is to run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from scripts.build_wheels import TARGETS, faults, main, tools

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def pip(*words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def index() -> None:
    """Skips where pip's index cannot be reached."""
    if pip("index", "versions", "--retries", "0", "wheel").returncode != 0:
        pytest.skip("pip's index cannot be reached")


# ---------------------------------------------------------------- platforms

PLATFORMS = {  # pip takes no tag for an older C library than it is given: all that a current system accepts
    "linux x86_64": [f"manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_24", "_2_17", "2014")],
    "linux aarch64": [f"manylinux{tag}_aarch64" for tag in ("_2_28", "_2_27", "_2_24", "_2_17", "2014")],
    "macos arm64": [f"macosx_{version}_0_arm64" for version in range(14, 10, -1)]
    + [f"macosx_{version}_0_universal2" for version in range(14, 10, -1)],
}


PYTHONS = ("3.11", "3.12", "3.13", "3.14")


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_edge_extra_resolves_to_wheels(platform, tmp_path):
    """Every dependency of thinwire[edge] has a wheel there: nobody needs a compiler on a device."""
    with ThreadPoolExecutor(4) as pool:  # pip waits for the index most of the time
        done = [pool.submit(resolve, platform, python, tmp_path / python) for python in PYTHONS]
    for each in done:
        each.result()
    for python in PYTHONS:
        report = json.loads((tmp_path / python / "report.json").read_text())
        found = {each["metadata"]["name"].lower() for each in report["install"]}
        assert {"numpy", "onnxruntime", "grpcio"} <= found
        assert "constriction" not in found


def resolve(platform: str, python: str, folder: Path) -> None:
    folder.mkdir()
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["edge"]]
    tags = [word for tag in PLATFORMS[platform] for word in ("--platform", tag)]
    words = ["--quiet", "--dry-run", "--ignore-installed", "--only-binary=:all:", "--python-version", python]
    done = pip("install", *words, *tags, "--target", folder, "--report", folder / "report.json", *wanted)
    if done.returncode != 0:
        raise RuntimeError(f"{platform}, Python {python}: {done.stderr[-1500:]}")


# ---------------------------------------------------------------- wheels

BUILT = ("manylinux-x86_64", "manylinux-aarch64", "any", "sdist")  # the others by `make wheels` alone


@pytest.fixture(scope="module")
def made(index, tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("wheels")
    assert main(["--targets", *BUILT, "--out", str(out)]) == 0
    suffixes = [("sdist", ".tar.gz"), ("any", "-py3-none-any.whl")]
    suffixes += [(name, f"-cp311-abi3-{TARGETS[name].tag}.whl") for name in BUILT if name in TARGETS]
    found = {name: list(out.glob(f"thinwire-*{suffix}")) for name, suffix in suffixes}
    assert all(len(files) == 1 for files in found.values()), sorted(out.iterdir())
    return {name: files[0] for name, files in found.items()}


def test_a_wheel_of_another_system_is_found_out(made, tmp_path):
    """The checks that `make wheels` runs on each wheel can fail."""
    assert faults(tools(), made["manylinux-x86_64"], "manylinux-x86_64") == []
    wrong = faults(tools(), made["manylinux-aarch64"], "manylinux-x86_64")
    assert any("tags" in each for each in wrong)
    assert any("EM_AARCH64" in each for each in wrong)
    assert any("holds []" in each for each in faults(tools(), made["any"], "manylinux-x86_64"))
    assert any("GLIBC" in each for each in faults(tools(), made["manylinux-x86_64"], "musllinux-x86_64"))


CODE = """
import json, sys, warnings
import numpy as np
from thinwire.bundle import load_bundle
bundle = load_bundle("layered")
symbols = np.load(sys.argv[1])["chelsea.png"].astype(np.int32)
print(json.dumps({"form": bundle.coder.form, "packet": bundle.encode(symbols, "mid").to_bytes().hex()}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.uname().machine != "x86_64", reason="no Linux on x86-64")
@pytest.mark.parametrize(("name", "form"), [("manylinux-x86_64", "compiled"), ("any", "readable")])
def test_a_wheel_codes_the_golden_packet(made, name, form, tmp_path):
    with zipfile.ZipFile(made[name]) as archive:
        archive.extractall(tmp_path)
    golden = ROOT / "tests" / "golden" / "layered.npz"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("THINWIRE")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, golden],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["form"] == form
    from thinwire.bundle import load_bundle

    symbols = np.load(golden)["chelsea.png"].astype(np.int32)
    assert found["packet"] == load_bundle("layered").encode(symbols, "mid").to_bytes().hex()
    assert ("compiled coder is missing" in done.stderr) == (form == "readable")


def test_the_sdist_builds_with_a_compiler_and_without(made, tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    for compiler in ("cc", "/nonexistent/cc"):
        environment = {**os.environ, "CC": compiler}
        out = tmp_path / Path(compiler).parent.name
        words = ["wheel", "--quiet", "--no-deps", "-w", str(out), str(made["sdist"])]
        done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-1500:]
        with zipfile.ZipFile(next(out.glob("thinwire-*.whl"))) as archive:
            names = archive.namelist()
        assert any(name.startswith("thinwire/_coder") for name in names) == (compiler == "cc")
        assert "thinwire/models/layered/card.json" in names


# ---------------------------------------------------------------- without the compiled part


def test_the_conformance_suite_passes_in_plain_python():
    """The bundles that ship; families without one are left out, as training them takes minutes."""
    words = ["-p", "no:cacheprovider", "-q", "tests/test_conformance.py", "-k", "layered", "-n", "0"]
    environment = {**os.environ, "THINWIRE_CODER": "python"}
    environment.pop("ONLY_LISTED_SKIPS", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-rA"], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count("PASSED") >= 20
