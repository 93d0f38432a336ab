"""`thinwire-bench cascade`: what is fitted to two opinions, what the policy then does, and the command itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy.cascade import _at_bytes
from benchmarks.accuracy.cascade_fit import SETS, draw_sets, fit_fusion
from benchmarks.accuracy.cascade_policy import Answers, Cascade, Rungs
from benchmarks.accuracy.cascade_vectors import Sent
from benchmarks.cli import main
from benchmarks.report.cascade import cascade_section
from benchmarks.results.store import ResultsError
from cloud.engine.fusion import FILE
from cloud.engine.text_heads import make_head
from tests.cloud.tiny_clip import write_tiny_clip
from tests.export.photographs import crops
from tests.tiny_bundle import make_tiny_still

SECOND = b"pixl"
DIM, NAMES, PHOTOGRAPHS = 32, 60, 160


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def world():
    """Texts, and photographs near one each; two opinions that err independently, the second less where it has more."""
    rng = np.random.default_rng(0)
    texts = unit(rng.standard_normal((NAMES, DIM)))
    targets = rng.integers(0, NAMES, 2 * PHOTOGRAPHS)
    originals = unit(texts[targets] + 0.1 * rng.standard_normal((len(targets), DIM)))

    def seen(noise):
        return unit(originals + noise * rng.standard_normal(originals.shape))

    return texts, targets, originals, seen(0.22), {1: seen(0.3), 2: seen(0.15)}


@pytest.fixture(scope="module")
def fusion(world):
    texts, _, originals, first, second = world
    half = slice(0, PHOTOGRAPHS)
    seconds = {SECOND: {level: (100.0 * level, vectors[half]) for level, vectors in second.items()}}
    return fit_fusion({5: first[half]}, seconds, originals[half], texts, 30.0, {SECOND: "pixels"})


def test_every_set_holds_what_the_clip_says_of_the_original(world):
    texts, _, originals, *_ = world
    sets = draw_sets(originals[:20], texts)
    assert sets.names.shape[0] == 20 * SETS
    best = (originals[:20] @ texts.T).argmax(1)
    assert (sets.names[:, 0] == best[sets.photographs]).all()
    for row in sets.names:
        here = row[row >= 0]
        assert len(set(here)) == len(here) >= 3
    logits = sets.logits(originals[:20], texts, 30.0)
    assert np.isneginf(logits[sets.absent]).all()
    assert (logits.argmax(1) == 0).all()


def test_two_opinions_are_better_than_each_on_photographs_that_were_not_fitted_to(world, fusion):
    texts, targets, _, first, second = world
    rest = slice(PHOTOGRAPHS, None)
    for level, vectors in second.items():
        one, other = fusion.pair(5, SECOND, level).scales
        both = one * first[rest] + other * vectors[rest]
        right = [(each @ texts.T).argmax(1) == targets[rest] for each in (first[rest], vectors[rest], both)]
        assert right[2].mean() >= max(right[0].mean(), right[1].mean())
    first, second = (fusion.pair(5, SECOND, level).scales for level in (1, 2))
    assert first[1] / first[0] < second[1] / second[0], "the better packet counts more"


def test_a_sure_answer_is_asked_about_less(fusion):
    for level in (1, 2):
        table = fusion.pair(5, SECOND, level).table
        assert table.confidence(0.0) < table.confidence(0.95)
        assert (np.diff(table.confidences) >= 0).all()


def test_the_dial_trades_bytes_for_answers(world, fusion):
    texts, targets, _, first, second = world
    head = make_head(tuple(map(str, range(NAMES))), texts, 30.0)
    rungs = _Rungs()
    sent = {level: Sent(np.full(len(targets), 100 * level), vectors) for level, vectors in second.items()}
    cascade = Cascade(rungs, fusion, head, Sent(np.full(len(targets), 30), first), sent)
    took = [cascade.answers(confidence, targets) for confidence in (0.05, 0.9, 0.99)]
    sizes = [each.answers.mean_bytes for each in took]
    assert sizes[0] == 30
    assert sizes[0] < sizes[1] < sizes[2] < 230
    right = [each.answers.right.mean() for each in took]
    assert right[0] < right[1] <= right[2] + 0.02
    assert not took[0].asked.any()
    assert 0 < took[1].asked.mean() < 1
    row = cascade.fused(2, targets)
    assert row["both_minus_better"][2] >= 0, "never worse than the better one by more than its interval"


class _Rungs(Rungs):
    """Of no bundles: a name and a model id are all that the policy asks for."""

    def __init__(self) -> None:
        self.__dict__.update(first=_Named("vector", b"vctr"), second=_Named("pixels", SECOND))

    @property
    def level(self) -> int:
        return 5


class _Named:
    def __init__(self, name: str, model_id: bytes) -> None:
        self.name, self.model_id = name, model_id


def test_a_codec_is_compared_at_the_best_mixture_of_equal_bytes():
    low = Answers(np.array([1, 0, 0, 0], bool), np.full(4, 100))
    high = Answers(np.array([1, 1, 1, 0], bool), np.full(4, 300))
    np.testing.assert_allclose(_at_bytes([low, high], 200.0), [1, 0.5, 0.5, 0])
    np.testing.assert_allclose(_at_bytes([low, high], 500.0), high.right)
    assert _at_bytes([low, high], 50.0) is None


@pytest.mark.slow
def test_the_command_fits_measures_and_agrees_with_the_wire(tmp_path, monkeypatch, capsys):
    from export import embedding_bundle
    from tests.export.photographs import stand_in

    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedding_bundle, "training_views", stand_in)
    clip = write_tiny_clip(tmp_path / "tiny-random-clip")
    first = embedding_bundle.make_embedding_bundle(str(clip), tmp_path / "first", 300)
    still = make_tiny_still(tmp_path / "still")
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
    (tmp_path / "images").mkdir()
    for number, view in enumerate(crops(76, seed=4)):
        folder = tmp_path / "images" if number >= 16 else tmp_path / "data" / ("cat", "dog")[number % 2]
        Image.fromarray(view).save(folder / f"{number:03}.png")
    words = ["cascade", "--ladder", f"{first},{still.path}", "--clip", str(clip), "--confidence", "0.9"]
    assert main([*words, "--data", str(tmp_path / "data")]) == 1
    assert "add --fit and --images" in capsys.readouterr().err
    more = ["--fit", "--images", str(tmp_path / "images"), "--data", str(tmp_path / "data"), "--wire", "6"]
    assert main([*words, *more]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    ((_, found),) = document["sets"].items()
    assert found["n"] == 16
    assert found["wire"]["failed"] == 0
    assert found["wire"]["other_answers"] == 0
    assert found["wire"]["bytes_mean"] == pytest.approx(found["wire"]["computed_bytes_mean"], abs=0.1)
    assert {"bytes_mean", "top1_relative", "needed_pixels", "against"} <= set(found["reported"])
    entry = next(iter(json.loads((first / FILE).read_text())["clips"].values()))
    assert entry["images"] == 60
    assert entry["date"]


def test_the_report_shows_it_beside_single_codecs_and_over_links(tmp_path):
    point = {"bytes_mean": 210.4, "top1": 0.7, "top1_relative": 0.91, "top1_relative_ci95": [0.88, 0.94]}
    cascade = {**point, "confidence": 0.9, "needed_pixels": 0.25, "against": {"still": [0.1, 0.04, 0.16]}}
    found = {
        "reported": cascade,
        "cascade": [cascade],
        "single": {"still low": point, "still mid": point},
        "wire": {"links": [{"link": "nb-iot", "first_ms": 1700.0, "cascade_ms": 1750.0, "second_ms": 1900.0}]},
    }
    assert cascade_section(tmp_path) is None
    (tmp_path / "cascade.json").write_text(json.dumps({"confidence": 0.9, "sets": {"scenes": found}}))
    section = cascade_section(tmp_path)
    assert "| scenes | cascade, confidence 0.9 | 210 | 0.910 (0.880 to 0.940) | 25% |  |" in section.markdown
    assert "| scenes | still low | 210 | 0.910 (0.880 to 0.940) |  | +10.0 points (+4.0 to +16.0) |" in section.markdown
    assert "| scenes | nb-iot | 1,700 | 1,750 | 1,900 |" in section.markdown
    (tmp_path / "cascade.json").write_text("{}")
    with pytest.raises(ResultsError, match="is not what"):
        cascade_section(tmp_path)
