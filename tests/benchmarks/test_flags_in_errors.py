"""Commands run where nothing lies beside the checkout: each option that an error names is one that the command has."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from benchmarks.cli import main
from tests.test_quoted_commands import commands_of
from tests.tiny_bundle import make_tiny_bundle

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
QUOTED = re.compile(r"`(thinwire-\w+) ([a-z-]+)([^`]*)`")
CASES = {
    "eval": ["--data NONE", "--data DATA --bundle NONE", "--data DATA --bundle TINY --rates huge"],
    "rate-accuracy": [
        "--data NONE",  # all families: those that cannot be made are told
        "--data DATA --families embedding",
        "--data DATA --families NONE",
        "--data DATA --families still --peers gif",
        "--data DATA --families TINY --adapter NONE",
        "--data DATA --families TINY --judge nobody",
    ],
    "study": [
        "--data-dir NONE --out OUT --families TINY",
        "--data-dir DATA --out OUT --families embedding",
        "--data-dir DATA --out OUT --families TINY --only nothing",
        "--data-dir DATA --out OUT --families TINY --data nothing",
    ],
    "report": ["NONE"],
    "latency": [
        "--data NONE",
        "--data DATA --bundles embedding",
        "--data DATA --bundles all --links nowhere",
        "--data DATA --bundles TINY --peers jxl",
        "--data DATA --bundles TINY --peers gif",
        "--data DATA --bundles TINY --peers av1 --peer-points x",
        "--data DATA --bundles TINY --peers av1 --hull NONE",
        "--data DATA --bundles TINY --on-edge TINY",
        "--data DATA --bundles TINY --loops round",
        "--data DATA --bundles TINY --arrivals 0",
    ],
    "throughput": ["--data NONE", "--data DATA --bundles embedding", "--data DATA --rounds 0"],
    "energy": ["--data NONE", "--data DATA --bundles embedding", "--data DATA --bundles TINY --peers gif"],
    "coder": ["--bundle NONE", "--rate huge"],
    "compare": ["--data NONE --bundles TINY", "--data DATA --bundles embedding", "--data DATA --bundles NONE"],
    "calibrate": ["", "--data NONE", "--images NONE", "--data DATA --bundle NONE", "--data DATA --clip NONE"],
    "progressive": ["--data NONE", "--data DATA --bundle NONE", "--data DATA --bundle TINY --server 127.0.0.1:1"],
    "cascade": [
        "--ladder still",
        "--ladder still,layered --confidence 2",
        "--ladder still,layered --data NONE",
        "--ladder still,layered --fit",
        "--ladder layered,NONE",
    ],
    "service": ["--bundle NONE"],
    "runtimes": ["--bundle NONE", "--runtimes coffee", "--runtimes onnx:bf16"],
    "edge-footprint": ["--bundle NONE"],
    "rate-auto": ["--data NONE", "--data DATA --bundle NONE"],
    "watching": ["--bundle NONE", "--clip NONE"],
    "search": ["--clip NONE"],
}
WITHOUT = {"field", "ray"}  # take nothing that lies beside a checkout


def lines() -> list[tuple[str, str]]:
    return [(command, words) for command, each in CASES.items() for words in each]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """A data set of two classes and a bundle, in a folder with nothing else."""
    root = tmp_path_factory.mktemp("alone")
    for name in ("cat", "dog"):
        (root / "data" / "set" / name).mkdir(parents=True)
        for number in range(2):
            pixels = np.full((40, 40, 3), 60 * number + 40, np.uint8)
            Image.fromarray(pixels).save(root / "data" / "set" / name / f"{number}.png")
    tiny = make_tiny_bundle(root / "tiny", name="tiny")
    return {"DATA": str(root / "data" / "set"), "TINY": str(tiny.path), "NONE": str(root / "none")}


@pytest.mark.parametrize(("command", "words"), lines())
def test_errors_name_flags_that_the_command_has(command, words, places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("export.photos.data_root", lambda: tmp_path / "shared")
    chosen = [{**places, "OUT": str(tmp_path / "out")}.get(word, word) for word in words.split()]
    chosen = [",".join(places.get(part, part) for part in word.split(",")) for word in chosen]
    try:
        code = main([command, *chosen])
    except SystemExit as refused:  # of argparse
        code = refused.code
    said = capsys.readouterr().err
    assert code != 0, said
    assert "Traceback" not in said
    for program, name, rest in QUOTED.findall(said):
        held = commands_of(program)[name]._option_string_actions
        assert set(FLAG.findall(rest)) <= set(held), f"{program} {name}: {rest}"
    named = set(FLAG.findall(QUOTED.sub("", said)))
    own = commands_of("thinwire-bench")[command]._option_string_actions
    assert named <= set(own), f"`thinwire-bench {command} {words}` says: {said}"


def test_every_command_is_tried():
    assert set(CASES) | WITHOUT == set(commands_of("thinwire-bench"))


def test_an_embedding_that_cannot_be_made_names_the_command_that_takes_photographs(
    places, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("export.photos.data_root", lambda: tmp_path / "shared")
    assert main(["rate-accuracy", "--data", places["NONE"]]) == 1
    said = capsys.readouterr().err
    assert "all bundles, without embedding: " in said
    assert "`thinwire-export embedding --clip clip-lite --images SOURCE" in said
    assert Path(places["NONE"]).name in said.splitlines()[-1]  # and goes on to what it was asked for
