"""What is installed, imported and shipped: the extras, the lock, the sizes, and an edge without torch."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import pkgutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "thinwire" / "models"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
HEAVY = {"torch", "torchvision", "open_clip", "timm", "transformers"}
MB = 1_000_000
UNLOCKED = {"ray", "datasets"}  # extras that are not in the lock: their tests are skipped without them

ROOMS = {  # room: (the extra that must declare what it imports, some of what it is known to import)
    "thinwire": (None, {"numpy", "pillow", "google-crc32c", "protobuf"}),
    "edge": ("edge-all", {"numpy", "pillow", "grpcio", "onnxruntime", "av", "paho-mqtt", "cryptography"}),
    "cloud": ("cloud-all", {"torch", "open-clip-torch", "onnxruntime", "grpcio", "googleapis-common-protos"}),
    "synthesis": ("export", {"torch", "safetensors", "regex", "ftfy", "tokenizers"}),
    "export": ("export", {"torch", "onnx", "onnxruntime"}),
    "benchmarks": ("bench-all", {"numpy", "pillow", "ai-edge-litert"}),
    "scripts": ("dev", {"grpcio-tools"}),
    "tests": ("dev", {"pytest", "hypothesis", "packaging"}),
}


def requirements(extra: str | None) -> list[Requirement]:
    """The base's requirements and those of `extra`, thinwire[...] unfolded."""
    lines = PROJECT["dependencies"] if extra is None else EXTRAS[extra]
    found = [] if extra is None else requirements(None)
    for each in map(Requirement, lines):
        own = each.name == PROJECT["name"]
        found += [inner for name in sorted(each.extras) for inner in requirements(name)] if own else [each]
    return found


def declared(extra: str | None) -> set[str]:
    return {canonicalize_name(each.name) for each in requirements(extra)}


def lock() -> dict[str, Version]:
    pins = [line.split("==") for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").split()]
    return {canonicalize_name(name): Version(version) for name, version in pins}


# ---------------------------------------------------------------- imports


def modules_of(*rooms: str) -> list[str]:
    return [
        name
        for room in rooms
        for name in (room, *(info.name for info in pkgutil.walk_packages([str(ROOT / room)], f"{room}.")))
    ]


def test_no_module_of_the_edge_loads_torch():
    names = modules_of("edge", "thinwire")
    assert {"edge.cli", "edge.line.uplink", "edge.encoder", "thinwire.packet", "thinwire.v1.inference_pb2"} <= set(
        names
    )
    code = f"import importlib, sys; [importlib.import_module(n) for n in {names}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert loaded >= {*names, "onnxruntime", "grpc", "numpy", "PIL"}  # so that the next line would see torch
    assert not loaded & HEAVY


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
    return found


@cache
def owners(top: str) -> list[str]:
    return sorted(set(PACKAGES.get(top, ())))


@cache
def installed_files(distribution: str) -> set[str]:
    return {file.with_suffix("").as_posix() for file in importlib.metadata.files(distribution) or ()}


PACKAGES = importlib.metadata.packages_distributions()
FIRST_PARTY = {*ROOMS} | {"docs", "setup"}


def distribution_of(module: str) -> str:
    """The distribution that brings `module`; namespaces like google.* are settled by who owns the file."""
    top, prefix = module.split(".")[0], module.replace(".", "/")
    if top in UNLOCKED:
        return top
    names = owners(top)
    if len(names) > 1:
        inside = f"{prefix}/"
        names = [name for name in names if any(f == prefix or f.startswith(inside) for f in installed_files(name))]
    assert len(names) == 1, f"{module} is brought by {names or 'no installed distribution'}"
    return canonicalize_name(names[0])


def third_party(room: str) -> dict[str, str]:
    """{distribution: a file that imports it} of a room; the generated gRPC stubs are code of the rooms that call."""
    found = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        if not path.name.endswith("_pb2_grpc.py"):
            for module in imports(path):
                if module.split(".")[0] not in sys.stdlib_module_names | FIRST_PARTY:
                    found[distribution_of(module)] = str(path.relative_to(ROOT))
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_declares_what_it_imports(room):
    extra, known = ROOMS[room]
    used = third_party(room)
    assert known <= used.keys()  # the search finds what is there
    missing = {name: file for name, file in used.items() if name not in declared(extra) | UNLOCKED}
    assert not missing, f"not in the extra {extra!r}: {missing}"


def test_every_room_is_looked_at():
    rooms = {path.parent.name for path in ROOT.glob("*/*.py")}
    assert rooms <= ROOMS.keys()


def test_the_workshop_declares_what_the_shared_nets_import():
    assert third_party("synthesis").keys() <= declared("export")


def test_the_edge_extra_names_nothing_heavy():
    used = third_party("edge") | third_party("thinwire")
    heavy = {"torch", "torchvision", "open-clip-torch", "timm", "transformers", "rich", "sympy"}
    assert not heavy & (declared("edge") | used.keys())
    assert {"grpcio", "onnxruntime"} <= declared("edge")  # what the generated gRPC stubs need, and the encoder
    assert declared("edge-gpu") == declared("edge") - {"onnxruntime"} | {"onnxruntime-gpu"}


def test_the_cloud_extras_bring_one_runtime_each_and_no_more():
    torch, heavy = {"torch", "torchvision", "open-clip-torch"}, {"torch", "transformers", "timm", "onnx", "onnxscript"}
    assert not heavy & (declared("cloud") | declared("cloud-gpu") | declared("demo"))
    assert torch < declared("cloud-torch")
    assert declared("cloud-gpu") == declared("cloud") - {"onnxruntime"} | {"onnxruntime-gpu"}
    assert "cloud-onnx" not in EXTRAS  # `cloud` is what it was, without torch


def test_no_extra_but_those_for_gpus_may_meet_onnxruntime_gpu():
    """Both packages own one folder: what is installed last wins, in part."""
    runtimes = {"onnxruntime", "onnxruntime-gpu"}
    for extra in EXTRAS:
        assert len(runtimes & declared(extra)) <= 1, extra
        assert ("onnxruntime-gpu" in declared(extra)) == extra.endswith("-gpu"), extra
    told = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert "never install `cloud-gpu` beside `edge`, `cloud` or `cloud-torch`" in " ".join(told.split())


def test_the_light_lock_is_the_full_locks_part_for_the_demo():
    done = subprocess.run(
        [sys.executable, "scripts/light_lock.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pins = dict(line.split("==") for line in (ROOT / "requirements-light.lock").read_text().split())
    assert not {canonicalize_name(name) for name in pins} & (HEAVY | {"open-clip-torch", "onnx"})


@pytest.mark.skipif("THINWIRE_LIGHT_ENV" not in os.environ, reason="`make test` makes the light environment")
def test_the_light_environment_is_whole():
    python = Path(os.environ["THINWIRE_LIGHT_ENV"]) / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    code = f"import importlib.util as u; print(*[n for n in {sorted(HEAVY)} if u.find_spec(n)])"
    assert subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


# ---------------------------------------------------------------- sizes


def size(paths) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
def test_the_tracked_tree_is_small():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = [ROOT / name for name in listing.split("\0") if name]
    assert ROOT / "pyproject.toml" in tracked
    assert size(tracked) <= 48 << 20


def test_the_shipped_models_are_small():
    bundles = sorted(card.parent for card in MODELS.glob("*/card.json"))
    assert {MODELS / "still", MODELS / "layered"} <= set(bundles)
    for bundle in bundles:
        edge_side = [path for path in bundle.rglob("*") if path.name != "decoder.safetensors"]
        encoder, decoder = (
            size([bundle / "encoder.onnx"]),
            size([bundle / "decoder.safetensors"]),
        )  # a still has neither
        assert encoder < size(edge_side) <= 2 * MB, bundle.name
        assert decoder <= 8 * MB, bundle.name
        assert (encoder > 0 and decoder > 0) or bundle.name == "still"
    assert 1 * MB < size((MODELS / "clip-lite").rglob("*")) <= 25 * MB  # one set of weights, both forms


# ---------------------------------------------------------------- scripts and lock


def test_console_scripts_resolve():
    assert set(PROJECT["scripts"]) == {"thinwire-edge", "thinwire-cloud", "thinwire-export", "thinwire-bench"}
    for target in PROJECT["scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name)), target


def test_the_lock_satisfies_every_requirement():
    pins, seen = lock(), set()
    unlocked = UNLOCKED | {"cloud-all"}
    for extra in (None, *(name for name in EXTRAS if not name.endswith("-gpu") and name not in unlocked)):
        for each in requirements(extra):
            if each.marker is None or each.marker.evaluate():
                name = canonicalize_name(each.name)
                assert name in pins, f"{each} is not in requirements.lock"
                assert each.specifier.contains(pins[name], prereleases=True), f"{each}, locked at {pins[name]}"
                seen.add(name)
    assert {"torch", "onnxruntime", "grpcio-tools", "pytest", "rich"} <= seen
    assert "onnxruntime-gpu" not in pins  # it owns the same folder as onnxruntime


def test_the_lock_names_what_its_packages_require():
    """Read from installed packages, where they are of the locked version."""
    pins, todo, done, looked = lock(), requirements("dev"), set(), 0
    while todo:
        each = todo.pop()
        name = canonicalize_name(each.name)
        assert name in pins, f"{each} is required and not in requirements.lock"
        for extra in {"", *each.extras} - {extra for other, extra in done if other == name}:
            done.add((name, extra))
            try:
                installed = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            if Version(installed.version) == pins[name]:
                looked += 1
                needs = map(Requirement, installed.requires or ())
                todo += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    assert looked > 50
