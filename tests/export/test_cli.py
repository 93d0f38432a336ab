from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from export.cli import main
from export.train import PRESETS
from thinwire.bundle import load_bundle, shipped_bundles


def refused(*argv) -> str:
    """The message with which a command ends; a text in SystemExit is printed and gives exit code 1."""
    with pytest.raises(SystemExit) as caught:
        main([str(each) for each in argv])
    assert isinstance(caught.value.code, str)
    return caught.value.code


def test_an_unknown_family_is_refused_with_those_that_exist(tmp_path):
    message = refused("train", "convv", "--out", tmp_path / "run")
    assert "'convv'" in message
    assert "conv" in message.split("choose from")[1]
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_run_says_how_to_make_one(tmp_path):
    message = refused("bundle", tmp_path / "nothing", "--out", tmp_path / "out")
    assert str(tmp_path / "nothing") in message
    assert "thinwire-export train" in message
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_checkpoint_yet_says_so(run, tmp_path):
    shutil.copy(run / "settings.json", tmp_path)
    assert "checkpoint.pt" in refused("bundle", tmp_path, "--out", tmp_path / "out")


@pytest.mark.parametrize("argv", [[], ["bundle", "run"], ["train", "conv", "--preset", "tpu"], ["fly"]])
def test_wrong_use_is_exit_code_2_with_the_usage(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: thinwire-export" in capsys.readouterr().err


def test_the_same_run_gives_a_bundle_with_the_same_model_id(run, bundle_folder, tmp_path, capsys):
    """Written again from the same checkpoint and photographs, a bundle still reads the packets already sent."""
    assert main(["bundle", str(run), "--out", str(tmp_path / "conv"), "--count", "8"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "conv")
    again = load_bundle(tmp_path / "conv")
    assert (again.name, again.model_id) == ("conv", load_bundle(bundle_folder).model_id)


def test_train_runs_to_a_bundle(tmp_path, capsys, monkeypatch):
    """The first line of the help, in two small steps."""
    monkeypatch.setitem(PRESETS, "cpu", replace(PRESETS["cpu"], batch=2, crop=64))
    folder = tmp_path / "run"
    assert main(["train", "conv", "--steps", "2", "--threads", "1", "--seed", "5", "--out", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "bundle")
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["progress"] == 1.0
    settings = load_bundle(folder / "bundle").card.about["training"]["settings"]
    assert (settings["steps"], settings["seed"], settings["family"]) == (2, 5, "conv")


def test_list_shows_every_shipped_bundle(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name, path in shipped_bundles().items():
        bundle = load_bundle(path)
        assert name in out
        assert bundle.model_id.hex() in out
        assert all(rate in out for rate in bundle.rates)


def measured(model_id):
    """What `thinwire-bench eval --json` writes, as far as a card needs it."""
    figures = {"top1": 61.0, "top5": 90.0, "top1_relative": 0.93, "top1_relative_ci95": [0.9, 0.95], "n": 100}
    rows = [
        {"rate": rate, "bytes_mean": size, "encode_ms_p50": 9.5, **figures}
        for rate, size in ((None, 9000.0), ("low", 251.0), ("mid", 600.0))
    ]
    return {
        "bundle": {"model_id": model_id},
        "data": {"name": "imagenette"},
        "clip": "clip-lite#1",
        "prompt_set": "7",
        "results": rows,
    }


def copied(folder, target):
    shutil.copytree(folder, target)
    return target


def test_measured_figures_enter_the_card_and_leave_the_model_id(bundle_folder, tmp_path):
    folder = copied(bundle_folder, tmp_path / "conv")
    before = load_bundle(folder)
    (tmp_path / "results.json").write_text(json.dumps(measured(before.model_id.hex())))
    assert main(["card", str(folder), str(tmp_path / "results.json")]) == 0
    after = load_bundle(folder)
    assert after.model_id == before.model_id
    figures = after.card.about["metrics"]["imagenette"]
    assert (figures["clip"], figures["low"]["bytes_mean"], figures["mid"]["n"]) == ("clip-lite#1", 251.0, 100)
    assert after.card.about["training"] == before.card.about["training"]


def test_figures_of_another_model_are_refused_and_nothing_is_written(bundle_folder, tmp_path):
    folder = copied(bundle_folder, tmp_path / "conv")
    before = (folder / "card.json").read_bytes()
    (tmp_path / "results.json").write_text(json.dumps(measured("00000000")))
    assert "00000000" in refused("card", folder, tmp_path / "results.json")
    assert "missing.json" in refused("card", folder, tmp_path / "missing.json")
    assert (folder / "card.json").read_bytes() == before
