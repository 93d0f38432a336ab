"""Installs the `edge` extra alone from a wheel of this checkout, prints its size, and classifies a photograph with it.

    python scripts/edge_size.py [--newest]      (`make edge-size`; needs the full environment and pip's index)

Sizes are file lengths in MB of 10^6 bytes. "As shipped" is what the wheels hold (`pip install --no-compile`, or uv);
"with .pyc" adds the byte code that a plain `pip install` writes beside each module. The limit holds for the first.
thinwire's own wheel is counted apart: its CLIP and decoders are for the cloud. The last line of stdout is JSON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rig.server_process import running_service  # noqa: E402

LIMIT_MB = 150
BUILD_FILES = ("pyproject.toml", "setup.py", "MANIFEST.in")
PHOTO, LABELS = "chelsea.png", "cat,dog,car"
HEAVY = ("torch", "torchvision", "open_clip", "timm", "transformers", "onnx", "sympy")
CLOUD_ONLY = ("open_clip_model.safetensors", "decoder.safetensors", "adapter.safetensors")
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}  # no PYTHONPATH


def run(command: list, what: str, environment: Mapping[str, str] = MappingProxyType({})) -> str:
    """Runs `command` without this checkout on the path; returns its stdout, or ends the script with what it said."""
    print(f"{what} ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**ENVIRONMENT, **environment}, cwd="/"
    )
    if done.returncode != 0:
        raise SystemExit(f"edge_size: {what} failed (exit {done.returncode}):\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def build_wheel(folder: Path, native: bool = True) -> Path:
    """A wheel of this checkout, built from a copy so that no build folder stays in it.

    native: with the compiled coder, if there is a C compiler; else a wheel for any system.
    """
    source = copy_source(folder / "source")
    environment = {} if native else {"THINWIRE_NATIVE": "0"}
    run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, source], "building the wheel", environment)
    return next(folder.glob("thinwire-*.whl"))


def copy_source(source: Path) -> Path:
    """Copies what a wheel or an sdist is made of to the folder `source`, which is returned."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rooms = [pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    for room in (*rooms, "native"):
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__", "_coder.*"))
    for name in (*BUILD_FILES, project["project"]["readme"], *project["project"]["license-files"]):
        if not (ROOT / name).is_file():
            raise SystemExit(f"edge_size: {ROOT / name} is missing, and the wheel needs it")
        shutil.copy(ROOT / name, source)
    return source


def install(wheel: Path, env: Path, newest: bool = False) -> Path:
    """A clean environment with thinwire[edge] and nothing else, not even pip; returns its site-packages.

    newest: the newest packages that thinwire allows, as a user's pip takes, in place of the locked ones.
    """
    run([sys.executable, "-m", "venv", "--without-pip", env], "making a clean environment")
    pip = [sys.executable, "-m", "pip", "--python", env / "bin" / "python", "install", "--no-compile"]
    versions = [] if newest else ["-c", ROOT / "requirements.lock"]
    run([*pip, *versions, f"{wheel}[edge]"], "installing thinwire[edge]")
    return next((env / "lib").glob("python3*/site-packages"))


def sizes(site: Path) -> dict[str, Counter]:
    """{distribution: bytes of "files" and of "pyc"} over every file in site-packages, whatever installed it."""
    owners = {
        os.path.realpath(dist.locate_file(file)): f"{dist.name} {dist.version}"
        for dist in distributions(path=[str(site)])
        for file in dist.files or ()
    }
    found: dict[str, Counter] = {}
    for path in filter(Path.is_file, site.rglob("*")):
        compiled = path.suffix == ".pyc"
        origin = importlib.util.source_from_cache(os.path.realpath(path)) if compiled else os.path.realpath(path)
        found.setdefault(owners.get(origin, "(no owner)"), Counter())["pyc" if compiled else "files"] += (
            path.stat().st_size
        )
    return found


def classify(env: Path) -> str:
    """The best label that the clean environment's `thinwire-edge classify` gets from a real server."""
    spec = importlib.util.find_spec("skimage")
    if spec is None:
        raise SystemExit("edge_size: the photograph comes from scikit-image: run `make setup`, then `make edge-size`")
    photo = Path(spec.origin).parent / "data" / PHOTO
    print("starting a server from the full environment ...", file=sys.stderr, flush=True)
    with running_service() as address:
        command = [env / "bin" / "thinwire-edge", "classify", photo, "--labels", LABELS, "--json", "--server", address]
        answer = json.loads(run(command, f"classifying {PHOTO}"))
    return answer["predictions"][0]["label"]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="thinwire-edge-size-") as name:
        folder, env = Path(name), Path(name) / "env"
        site = install(build_wheel(folder), env, newest="--newest" in sys.argv[1:])
        python = env / "bin" / "python"
        find = f"import importlib.util as u; print(*[n for n in {HEAVY} if u.find_spec(n)])"
        heavy = run([python, "-c", find], "looking for packages that an edge must not have").split()
        run([python, "-m", "compileall", "-q", site], "compiling, as a plain pip install does")
        found = sizes(site)
        cloud_only = sum(file.stat().st_size for pattern in CLOUD_ONLY for file in site.rglob(pattern))
        top = classify(env)
    own = sum((found.pop(name) for name in list(found) if name.startswith("thinwire ")), Counter())
    total = sum(found.values(), Counter())
    print(f"{'package':36}{'as shipped':>12}{'with .pyc':>12}   (MB)")
    rows = sorted(found.items(), key=lambda item: -item[1].total())
    rows += [("packages in all", total), ("thinwire itself", own)]
    for label, size in rows:
        print(f"{label:36}{size['files'] / 1e6:12.2f}{size.total() / 1e6:12.2f}")
    print(
        f"thinwire itself is not among the packages; {cloud_only / 1e6:.1f} MB of it are the cloud's CLIP and decoders"
    )
    report = {
        "edge_packages_mb": round(total.total() / 1e6, 1),
        "edge_packages_no_pyc_mb": round(total["files"] / 1e6, 1),
        "thinwire_mb": round(own.total() / 1e6, 1),
        "top1": top,
        "torch_imported": "torch" in heavy,
    }
    print(json.dumps(report), flush=True)
    faults = [f"{name} is installed" for name in heavy]
    if total["files"] >= LIMIT_MB * 1e6:
        faults.append(f"the packages take {total['files'] / 1e6:.1f} MB, the limit is {LIMIT_MB}")
    if top != "cat":
        faults.append(f"{PHOTO} was taken for a {top}")
    for fault in faults:
        print(f"edge_size: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
