"""`thinwire-export still-symbols`: a model of symbols learned from photographs, in a bundle of the same pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from export import still_symbols
from export.cli import main
from export.still_symbols import learn_symbols
from tests.tiny_bundle import make_tiny_still, synthetic_views
from thinwire import frame_packing
from thinwire.bundle import load_bundle
from thinwire.entropy import compiled_module

if compiled_module() is None:
    pytest.skip("no compiled coder, and nothing else learns symbols", allow_module_level=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, view in enumerate(synthetic_views(48, 96)):
        Image.fromarray(view).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_tiny_still(tmp_path_factory.mktemp("still") / "plain")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path_factory.getbasetemp() / "still-symbols-cache"))


def learn(plain, photos, out, *more) -> int:
    words = ["still-symbols", "--bundle", plain.path, "--images", photos, "--count", "24", "--out", out, *more]
    return main([str(word) for word in words])


def test_the_command_writes_a_bundle_that_packs_the_same_pictures(plain, photos, tmp_path, capsys):
    assert learn(plain, photos, tmp_path / "packed") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == str(tmp_path / "packed")
    packed = load_bundle(last)
    assert packed.model_id != plain.model_id
    assert packed.picture_id == plain.picture_id
    assert [line.split()[0] for line in lines] == ["rate", *plain.rates]
    planes = np.ascontiguousarray(synthetic_views(1, 64, seed=11)[0].transpose(2, 0, 1))
    for rate in plain.rates:
        one, two = plain.encode(planes, rate), packed.encode(planes, rate)
        assert len(two) < len(one)
        assert np.array_equal(plain.decode(one), packed.decode(two))
    told = packed.card.about["training"]["symbols"]
    assert (told["photographs"], told["frames"]) == (24, 48)
    assert all(each["payload_bytes_packed"] < each["payload_bytes_unpacked"] for each in told["held_out"].values())
    assert told["command"].startswith("thinwire-export still-symbols --bundle plain --images ")


def test_it_can_be_run_again_and_gives_the_same_bundle(plain, photos, tmp_path, capsys, monkeypatch):
    learn(plain, photos, tmp_path / "one")

    def coded_again(rung, view):
        raise AssertionError("frames are kept")

    monkeypatch.setattr("thinwire.still.Rung.frame", coded_again)
    learn(plain, photos, tmp_path / "two")
    one, two = (load_bundle(tmp_path / name) for name in ("one", "two"))
    assert (one.symbol_model(), one.model_id) == (two.symbol_model(), two.model_id)
    capsys.readouterr()


def test_what_an_interrupted_command_coded_is_not_coded_again(plain, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(still_symbols, "CHUNK", 8)
    rung = plain.coder.rungs[0]
    coded, frame = [], type(rung).frame

    def counted(self, view):
        if len(coded) == 20:
            raise KeyboardInterrupt
        coded.append(1)
        return frame(self, view)

    monkeypatch.setattr("thinwire.still.Rung.frame", counted)
    assert learn(plain, photos, tmp_path / "packed") == 130
    coded[:] = [1] * 21  # never 20 again
    assert learn(plain, photos, tmp_path / "packed") == 0
    assert len(coded) - 21 < 2 * (24 + 12)  # two rungs; the first chunk of 8 photographs was kept
    assert len(coded) - 21 >= 2 * (24 + 12 - 8)


def test_the_order_of_learning_is_the_seeds(plain, photos, tmp_path, capsys):
    models = []
    for seed in ("0", "1"):
        learn(plain, photos, tmp_path / seed, "--seed", seed)
        models.append(load_bundle(tmp_path / seed).symbol_model())
    assert models[0] != models[1]
    capsys.readouterr()


def test_frames_of_forms_that_are_not_packed_are_passed_over(plain):
    rung = plain.coder.rungs[0]
    grey = type(rung)(
        type(rung.form)(rung.form.width, rung.form.height, "4:0:0", rung.form.cdef), rung.quality, rung.speed, rung.tune
    )
    frames = [[grey.frame(Image.fromarray(view))] for view in synthetic_views(2, 64)]
    model, learned = learn_symbols([grey], frames)
    assert learned == 0
    assert model == compiled_module().StillPacker(b"").state()


def test_a_network_behind_the_still_goes_along(plain, photos, tmp_path, capsys):
    learn(plain, photos, tmp_path / "packed")
    words = ["restore", "--bundle", tmp_path / "packed", "--images", photos, "--steps", 1, "--count", 4]
    main([str(word) for word in (*words, "--out", tmp_path / "run")])
    restored = load_bundle(tmp_path / "run" / "bundle")
    assert restored.model_id == load_bundle(tmp_path / "packed").model_id
    assert learn(restored, photos, tmp_path / "again", "--seed", "1") == 0
    again = load_bundle(tmp_path / "again")
    assert again.symbol_model() != restored.symbol_model()
    assert again.decoder_path.read_bytes() == restored.decoder_path.read_bytes()
    assert again.card.cloud == restored.card.cloud
    capsys.readouterr()


def refused(*words) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    return str(caught.value.code)


def test_mistakes_are_told_before_anything_is_coded(photos, tmp_path, plain, monkeypatch):
    words = ("--images", photos, "--out", tmp_path / "out")
    assert "stills alone" in refused("still-symbols", "--bundle", "layered", *words)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    assert "is not a bundle" in refused("still-symbols", "--bundle", plain.path, *words)
    monkeypatch.setattr(frame_packing, "compiled_module", lambda: None)
    words = ("--images", photos, "--out", tmp_path / "new")
    assert "make setup" in refused("still-symbols", "--bundle", plain.path, *words)
    assert not (tmp_path / "new").exists()


def test_the_card_is_plain_json_with_the_model_beside_it(plain, photos, tmp_path, capsys):
    learn(plain, photos, tmp_path / "packed")
    capsys.readouterr()
    card = json.loads((tmp_path / "packed" / "card.json").read_text())
    assert card["wire"]["symbols"]["file"] == "symbols.bin"
    assert card["about"]["metrics"] == {}
