"""Every command that is quoted anywhere is one that its program takes: in README, docs and LOG, in help texts and error
messages, on cards and beside the figures in benchmarks/results."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARSERS = {
    "thinwire-edge": ("edge.cli", "_parser"),
    "thinwire-cloud": ("cloud.cli", "_parser"),
    "thinwire-export": ("export.cli", "build_parser"),
    "thinwire-bench": ("benchmarks.cli", "_parser"),
}
PROGRAM = "|".join(PARSERS)
PAGES = [ROOT / "README.md", ROOT / "LOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [path for path in [*PAGES, ROOT / "docs" / "thinwire-edge.service"] if path.exists()]
CODE = [path for room in ("edge", "cloud", "export", "benchmarks", "thinwire") for path in (ROOT / room).rglob("*.py")]
RECORDS = [*sorted((ROOT / "benchmarks" / "results").glob("*.json")), *sorted((ROOT / "thinwire").rglob("card.json"))]


@functools.cache
def parser_of(program: str) -> argparse.ArgumentParser:
    module, name = PARSERS[program]
    return getattr(importlib.import_module(module), name)()


def commands_of(program: str) -> dict[str, argparse.ArgumentParser]:
    actions = parser_of(program)._actions
    return next(action for action in actions if isinstance(action, argparse._SubParsersAction)).choices


def words_of(text: str) -> list[str]:
    """The words of one command as a shell has them: without comments, and without what follows a `|`, `&` or `>`."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in lexer:
        if word and set(word) <= set("|&;<>"):
            break
        words.append(word)
    return words


def quoted_in(text: str) -> Iterator[str]:
    """Commands between backticks, and those that have a line of their own (perhaps behind a pipe or a variable)."""
    text = re.sub(r"\\\n\s*", " ", text)
    for quoted in re.findall(rf"`((?:{PROGRAM})(?:\s[^`]*)?)`", text):
        yield " ".join(quoted.split())
    for line in text.splitlines():
        if ("`" not in line and (found := re.search(rf"^\s+(?:\S.*\s)?((?:{PROGRAM}) .*)$", line))) or (
            found := re.match(rf"(?:ExecStart=\S*|\s*)((?:{PROGRAM}) .*)$", line)
        ):
            yield re.split(r"\s{3,}", found[1])[0]


def recorded_in(document: object) -> Iterator[str]:
    """Values of `command`, at any depth."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key == "command" and isinstance(value, str) and re.match(rf"(?:{PROGRAM}) ", value):
                yield value
            yield from recorded_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from recorded_in(value)


def every_quote() -> list[tuple[str, str]]:
    quotes = [(path.relative_to(ROOT), each) for path in PAGES for each in quoted_in(path.read_text())]
    quotes += [(path.relative_to(ROOT), each) for path in RECORDS for each in recorded_in(json.loads(path.read_text()))]
    return list(dict.fromkeys((str(path), each) for path, each in quotes))


def refusal(quote: str, capsys: pytest.CaptureFixture) -> str:
    """What the quoted program says against the quoted words; "" where it takes them."""
    program, *words = words_of(quote)
    if len(words) <= 1 and "-" not in (words or [""])[0][:1]:  # a name, in a sentence about it
        return "" if not words or words[0] in commands_of(program) else f"{program} has no command {words[0]}"
    try:
        parser_of(program).parse_args(words)
    except SystemExit:
        return capsys.readouterr().err
    return ""


@pytest.mark.parametrize(("where", "quote"), every_quote(), ids=lambda text: text[:60])
def test_a_quoted_command_is_one_that_its_program_takes(where, quote, capsys):
    assert refusal(quote, capsys) == "", f"{where} quotes: {quote}"


def test_commands_are_found_in_each_kind_of_place():
    places = {where for where, _ in every_quote()}
    assert {"README.md", "LOG.md", "docs/edge.md", "benchmarks/results/service.json"} <= places


@pytest.mark.parametrize("program", PARSERS)
def test_the_examples_of_a_help_text_are_taken(program, capsys):
    for parser in [parser_of(program), *commands_of(program).values()]:
        for text in (parser.epilog or "", parser.description or ""):
            for quote in quoted_in(text):
                if "COMMAND" not in quote:
                    assert refusal(quote, capsys) == "", quote


def test_commands_named_in_code_exist():
    """In error messages and docstrings: at least the command's name."""
    for path in CODE:
        for program, name in re.findall(rf"`({PROGRAM}) ([a-z][a-z-]*)", path.read_text()):
            assert name in commands_of(program), f"{path.relative_to(ROOT)}: {program} {name}"


def _exists(name: str) -> bool:
    """Whether `cloud.front.server.Server`, or `benchmarks/codecs/grid.py`, is there: a file, and the names in it."""
    if "/" in name:
        return (ROOT / name).exists()
    place = ROOT
    words = name.split(".")
    while words and (place / words[0]).is_dir():
        place /= words.pop(0)
    if words and (place / f"{words[0]}.py").exists():
        text = (place / f"{words.pop(0)}.py").read_text()
    else:
        text = (place / "__init__.py").read_text() if (place / "__init__.py").exists() else ""
    return all(re.search(rf"\b{word}\b", text) for word in words)


@pytest.mark.parametrize("path", [*PAGES, *CODE], ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_files_that_are_named_exist(path):
    """Between backticks, in pages and docstrings: `benchmarks.codecs.grid`, `cloud/config.py`. LOG.md is history."""
    if path.name == "LOG.md":
        return
    rooms = "benchmarks|cloud|edge|export|synthesis|thinwire|scripts|tests"
    others = {
        "cloud.clip",
        "cloud.synthesis",
        "edge.precision",
        "thinwire._coder",
    }  # card fields, compiled code
    for name in re.findall(rf"`((?:{rooms})(?:\.[A-Za-z_]\w*)+|(?:{rooms})/[\w/-]+\.\w+)`", path.read_text()):
        assert name in others or "NAME" in name or name.startswith("thinwire.v1.") or _exists(name), name


def test_the_map_names_files_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = set(
        re.findall(r"\b(?:benchmarks|cloud|edge|export|native|proto|synthesis|thinwire)/[\w/]+\.(?:py|c|proto)", text)
    )
    assert len(names) > 40
    for name in names:
        assert "NAME" in name or (ROOT / name).exists(), name


def test_make_targets_that_are_quoted_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in PAGES:
        for name in re.findall(r"(?:`|^ {4})make ([a-z][a-z-]*)", path.read_text(), re.MULTILINE):
            assert name in targets, f"{path.relative_to(ROOT)}: make {name}"
