"""Commands of thinwire-export and thinwire-bench, given what users get wrong: one line that helps, no traceback."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("timm")
pytest.importorskip("skimage")

import export.cli
from benchmarks import cli as bench
from export import photos
from tests.tiny_disk import mounted_disk
from thinwire.files import told

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with what is wrong in all sorts of ways; ../shared does not exist."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(photos, "data_root", lambda: tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "other.json").write_text(json.dumps({"benchmark": "latency"}))
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text(json.dumps({"family": "conv"}))
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"PK no checkpoint")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "settings.json").write_text("[]")
    (tmp_path / "odd" / "checkpoint.pt").write_bytes(b"")
    return tmp_path


EXPORT = {
    "student": [
        ["--out", "out", "--clip", "no-such-clip"],
        ["--out", "out", "--clip", "empty"],
        ["--out", "out", "--backbone", "no-such-net"],
        ["--out", "out", "--images", "missing"],
        ["--out", "out", "--images", "bad.tar"],
        ["--out", "out", "--size", "0"],
        ["--out", "out", "--minutes", "nan"],
    ],
    "clip-onnx": [
        ["--out", "out", "--clip", "no-such-clip"],
        ["--out", "out", "--clip", "empty"],
        ["--out", "file", "--clip", "clip-lite"],
    ],
    "graph": [
        ["missing"],
        ["empty"],
        ["file"],
        ["layered", "--bundle", "still"],
    ],
    "train": [
        ["conv"],
        ["no-such-family"],
        ["embedding"],
        ["conv", "--decoder", "none"],
        ["conv", "--images", "missing"],
        ["conv", "--images", "empty"],
        ["conv", "--images", "bad.tar"],
        ["conv", "--images", "file"],
        ["conv", "--minutes", "-1"],
        ["conv", "--batch", "none"],
        ["conv", "--preset", "gpu", "--images", "empty"],
    ],
    "bundle": [
        ["empty", "--out", "out"],
        ["run", "--out", "out"],
        ["odd", "--out", "out"],
        ["run"],
        ["run", "--out", "out", "--images", "missing-{0..3}.tar"],
    ],
    "card": [
        ["layered", "missing.json"],
        ["layered", "bad.json"],
        ["layered", "other.json"],
        ["empty", "other.json"],
        ["layered", "empty"],
    ],
    "embedding": [
        ["--out", "out"],
        ["--out", "out", "--clip", "no-such-clip"],
        ["--out", "out", "--clip", "empty"],
        ["--out", "out", "--clip", "ViT-B-32:no-such-tag"],
        ["--out", "out", "--clip", "timm:no-such-net"],
        ["--out", "out", "--images", "empty"],
        ["--out", "file", "--images", "empty=2"],
        ["--out", "out", "--count", "0"],
    ],
    "still": [["--out", "out"], ["--out", "out", "--images", "empty"], ["--out", "out", "--count", "-3"]],
    "still-symbols": [
        ["--bundle", "no-such-bundle"],
        ["--bundle", "layered"],
        ["--out", "file"],
        ["--images", "empty"],
        ["--images", "bad.tar", "--out", "out"],
        ["--count", "0"],
    ],
    "restore": [
        ["--bundle", "no-such-bundle"],
        ["--bundle", "layered"],
        ["--images", "empty"],
        ["--minutes", "-1"],
    ],
    "adapt": [
        ["--bundle", "no-such-bundle"],
        ["--bundle", "empty"],
        ["--rates", "no-such-rate"],
        ["--clip", "no-such-clip"],
        ["--images", "missing"],
        ["--images", "hf:"],
    ],
    "tune": [
        [],
        ["--bundle", "no-such-bundle"],
        ["--clip", "no-such-clip"],
        ["--clip", "timm:no-such-net"],
        ["--clip", "NoSuchNet:laion2b"],
        ["--into", "air"],
        ["--device", "cuda:99"],
        ["--device", "tpu"],
        ["--images", "empty"],
        ["--images", "bad.tar"],
        ["--out", "file", "--images", "empty"],
    ],
    "clip-lite": [
        ["--backbone", "lite9"],
        ["--backbone", "deit-tiny", "--backbone-weights", "empty"],
        ["--images", "missing"],
        ["--views", "9"],
        ["--hold-out", "-1"],
        ["--text-tower", "clip-lite", "--text-start", "clip-lite"],
        ["--text-start", "missing"],
        ["--text-tower", "empty"],
        ["--tune", "no-such-clip"],
        ["--spellings", "missing"],
        ["--spellings", "clip-lite", "--tune", "clip-lite"],
        ["--spellings", "clip-lite", "--spelling-steps", "0"],
    ],
    "clip-lite-eval": [["missing"], ["empty"], ["file"]],
    "list": [["missing"], ["empty"], ["file"]],
}


def subcommands(parser: argparse.ArgumentParser) -> set[str]:
    (action,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return set(action.choices)


def test_every_command_of_export_is_walked():
    assert subcommands(export.cli.build_parser()) == set(EXPORT)


@pytest.mark.parametrize(
    ("command", "words"), [(command, words) for command, cases in EXPORT.items() for words in cases], ids=str
)
def test_export_says_one_line(place, capsys, command, words):
    with pytest.raises(SystemExit) as caught:
        export.cli.main([command, *words])
    if caught.value.code == 2:  # argparse: the usage, then one line
        assert "error:" in capsys.readouterr().err
        return
    assert isinstance(caught.value.code, str)
    assert caught.value.code.startswith(f"thinwire-export {command}: ")
    assert "\n" not in caught.value.code
    assert len(caught.value.code) > len(f"thinwire-export {command}: ") + 10


NEEDED = {  # what a command insists on, so that the wrong word is what it meets
    "eval": ["--data", "DATA"],
    "calibrate": ["--data", "DATA"],
    "progressive": ["--data", "DATA"],
}


@pytest.mark.parametrize("command", sorted(subcommands(bench._parser())))
@pytest.mark.parametrize("data", ["missing", "empty", "bad.tar", "file"])
def test_bench_refuses_data_that_is_none(place, capsys, command, data):
    """Commands that take --data; the others are given a flag that none has."""
    known = bench._parser()._subparsers._group_actions[0].choices[command]
    flags = {flag for action in known._actions for flag in action.option_strings}
    words = [command, "--data", data] if "--data" in flags else [command, "--no-such-flag", data]
    required = [action for action in known._actions if action.required and "--data" not in action.option_strings]
    words += [
        word for action in required for word in ([action.option_strings[0]] if action.option_strings else []) + ["x"]
    ]
    try:
        code = bench.main(words)
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr().err
    assert code not in (0, None)
    assert "Traceback" not in said
    assert said.strip()


@pytest.mark.parametrize(
    "words",
    [
        ["calibrate"],
        ["calibrate", "--images", "empty"],
        ["calibrate", "--images", "missing", "--data", "missing"],
        ["calibrate", "--images", "bad.tar"],
        ["eval", "--data", "missing", "--bundle", "no-such-bundle"],
        ["eval", "--data", "missing", "--decoder", "empty"],
    ],
    ids=str,
)
def test_bench_names_the_mistake(place, capsys, words):
    assert bench.main(words) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("thinwire-bench: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "conv", "--images", ""], "empty name"),
        (["train", "conv", "--images", "empty", "--out", "file"], "is a file where a folder is needed"),
        (["train", "conv", "--batch", "-2"], "no whole number above 0"),
        (["train", "conv", "--cache-gb", "nan"], "no number from 0"),
        (["train", "conv", "--cache-gb", "-1"], "no number from 0"),
        (["train", "conv", "--minutes", "nan"], "no number above 0"),
        (["embedding", "--out", "out", "--clip", ""], "empty name"),
        (["train", "conv", "--images", "a\0b"], "there is no"),
        (["train", "conv", "--images", "nothing.tar"], "holds no pictures"),
    ],
    ids=str,
)
def test_export_names_what_is_empty_negative_or_no_number(place, capsys, words, said):
    with tarfile.open(place / "nothing.tar", "w"):
        pass
    with pytest.raises(SystemExit) as caught:
        export.cli.main(words)
    text = str(caught.value.code) + capsys.readouterr().err
    assert said in text
    assert "Traceback" not in text


def test_bench_says_one_line_also_where_a_library_says_many(place, capsys):
    assert bench.main(["eval", "--data", "bad.tar"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("interrupted", [export.cli, bench])
def test_ctrl_c_is_one_line(place, capsys, monkeypatch, interrupted):
    def stop(*_):
        raise KeyboardInterrupt

    if interrupted is bench:
        monkeypatch.setattr("benchmarks.commands.eval._eval", stop)
        code = bench.main(["eval", "--data", "bad.tar"])
    else:
        monkeypatch.setitem(export.cli.COMMANDS, "list", stop)
        code = export.cli.main(["list", "empty"])
    assert code == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.slow
def test_a_disk_that_fills_while_views_are_cached_is_no_end(place, monkeypatch, capsys):
    """Views that cannot be kept are decoded again; what else cannot be written is one line."""
    from tests.export.photographs import write_pack

    write_pack(place / "pack.tar")
    words = ["train", "conv", "--images", "pack.tar", "--steps", "1", "--batch", "2", "--threads", "1", "--out", "r"]
    with mounted_disk(place / "small", "256k") as disk:
        # A process of its own: views that are mapped would keep the disk mounted
        env = {**os.environ, "PYTHONPATH": str(ROOT), "THINWIRE_CACHE": str(disk), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "export.cli", *words]
        done = subprocess.run(command, env=env, cwd=place, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("thinwire-export train: ")
        assert "No space left" in last or "the disk is full" in last


def test_what_a_system_says_is_told_with_its_file():
    assert "the disk is full" in told(OSError("385536 requested and 63456 written"))  # NumPy's words
    assert told(FileExistsError(17, "File exists", "x")).startswith("x: is a file where a folder is needed")
    assert told(PermissionError(13, "Permission denied", b"caf\xe9")) == "caf\udce9: Permission denied"
