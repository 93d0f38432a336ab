"""The shape of the code: no import circle, and every package says what it is for.

import-linter (`make lint`) holds which room may import which. Here imports inside functions count too.
"""

from __future__ import annotations

import ast
import pkgutil
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from benchmarks.study.experiments import EXPERIMENTS, SECTIONS

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("thinwire", "edge", "cloud", "export", "benchmarks", "synthesis")
# What may lie beside the rooms of a package: its faces, its command line, and what all its rooms share
FACES = {
    "benchmarks": {"__init__", "cli"},
    "cloud": {"__init__", "cli", "config", "decode", "errors", "ray_app", "ray_replica"},
    "edge": {"__init__", "cli", "defaults", "encoder", "errors", "onnx_analysis"},
}


def modules() -> dict[str, Path]:
    """{dotted name: file} of every module but the generated ones."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.parent != ROOT / "thinwire" / "v1"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of ours that a file imports anywhere: at the top, inside functions, for type checkers."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {name if (name := f"{node.module}.{each.name}") in known else node.module for each in node.names}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return found & set(known)


def test_no_module_imports_itself_by_a_detour():
    known = modules()
    graph = {name: imports_of(path, known) - {name} for name, path in known.items()}
    assert len(graph) > 150
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import circle: " + " -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize("room", FACES)
def test_a_file_outside_the_rooms_is_a_face_or_a_command_line(room):
    assert {path.stem for path in (ROOT / room).glob("*.py")} == FACES[room]


def test_experiments_and_report_sections_are_where_the_registry_says():
    for place in (*(each.place for each in EXPERIMENTS.values()), *SECTIONS):
        assert callable(pkgutil.resolve_name(place)), place


def test_every_package_says_what_it_is_for():
    for name, path in modules().items():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), f"{name} has no docstring"
