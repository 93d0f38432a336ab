"""A ladder through the real edge and the real cloud: a real student goes first, a still follows where it is wanted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundle import make_tiny_still, photo, synthetic_views
from tests.waiting import until

pytest.importorskip("torch")

from cloud.engine.calibration import LayerCalibration
from cloud.engine.events import Observer
from cloud.engine.fusion import FILE, Fusion, Pair, write_fusion
from cloud.front.server import background_server
from cloud.networks.assemble import open_engine
from edge import Client
from edge.cli import main
from edge.errors import ConnectionOptionsError
from edge.field.spool_file import spool_facts
from edge.line.ladder import open_ladder
from edge.line.progressive import classify_progressive
from tests.cloud.tiny_clip import write_tiny_clip
from tests.export.tiny_student import make_tiny_student
from tests.relay import Relay
from thinwire.bundle import load_bundle

pytestmark = pytest.mark.slow  # a student is distilled

ROOT = Path(__file__).resolve().parents[1]
LABELS = ["cat", "dog", "city at night"]
PHOTOS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cascade")


@pytest.fixture(scope="module")
def clip(folder):
    return write_tiny_clip(folder / "tiny-random-clip")


@pytest.fixture(scope="module")
def student(folder, clip):
    return load_bundle(make_tiny_student(folder / "student", clip))


@pytest.fixture(scope="module")
def still(folder):
    return make_tiny_still(folder / "still")


@pytest.fixture(scope="module")
def ladder(student, still):
    return f"{student.path},{still.path}"


@contextlib.contextmanager
def opened(clip, student, still, cache):
    with open_engine(str(clip), [student.path, still.path], "cpu", 1, cache_dir=cache) as engine:
        engine.test_clip, engine.test_still = clip, still.path
        engine.close = lambda *_: True  # it outlives the servers of the tests
        yield engine
        engine.__dict__.pop("close", None)


@pytest.fixture(scope="module")
def engine(folder, clip, student, still):
    """Its calibration knows nothing of margins: below a confidence of 0.6 every frame is final, above none."""
    with opened(clip, student, still, folder / "heads") as probe:
        clip_id = probe.heads.clip.id
    table = LayerCalibration(1.0, np.array([0.0]), np.array([0.6]))
    level = student.n_layers("mid")
    pairs = {(level, still.model_id, rung): Pair(200.0 + rung, 1.0, (0.5, 0.5), table) for rung in still.rates.values()}
    about = {"data": "by hand", "date": "2026-11-28", "images": 0, "label_sets": "none"}
    write_fusion(student, clip_id, Fusion(pairs, {still.model_id: still.name}), about)
    with opened(clip, student, still, folder / "heads") as engine:
        yield engine


class Finals(Observer):
    """How far the frames went that got their final answer."""

    def __init__(self) -> None:
        self.went: list[str] = []

    def answered(self, seen) -> None:
        self.went.append(seen.went)


@pytest.fixture
def finals(engine):
    seen, before = Finals(), engine.observers.all
    engine.observers.add(seen)
    yield seen
    engine.observers.replace(before)


@pytest.fixture
def address(engine):
    engine.close = lambda *_: True  # a relay takes this back
    with background_server(engine) as address:
        yield address


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(PHOTOS):
        photo(tmp_path / "photos", f"{number}.jpg", seed=number)
    return tmp_path / "photos"


@pytest.fixture
def run(ladder, photos, tmp_path, capsys):
    """`thinwire-edge run` → (exit code, result lines so far, summary, stderr)."""

    def run(address: str, *more: object):
        out = tmp_path / "out.jsonl"
        words = ["run", photos, "--labels", ",".join(LABELS), "--server", address, "--ladder", ladder]
        words += ["--spool", tmp_path / "spool.db", "--deadline", 60, "--out", out, "--summary", *more]
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return code, lines, json.loads(said.out.splitlines()[-1]) if said.out else {}, said.err

    return run


def one_each(lines) -> bool:
    """Whether every photograph has exactly one final answer."""
    final = [line for line in lines if line["final"]]
    return len(final) == len({line["key"] for line in final}) == PHOTOS and all(line["ok"] for line in final)


# ---------------------------------------------------------------- the Python client and the command line


def test_the_client_sends_the_second_packet_only_where_it_is_asked_for(address, ladder, student, still):
    steps = open_ladder(ladder)
    views = list(synthetic_views(3, 64, seed=5))
    with Client(address, student) as client:
        sure = list(classify_progressive(client, views, LABELS, confidence=0.5, ladder=steps))
        unsure = list(classify_progressive(client, views, LABELS, confidence=0.9, ladder=steps))
        by_still = Client(address, still)
        for few, more in zip(*(sorted(each, key=lambda outcome: outcome.index) for each in (sure, unsure))):
            assert not few.result.opinions
            assert [each.bundle for each in more.result.opinions] == [student.name, still.name]
            rung = more.result.opinions[1].layers
            rate = next(name for name, level in still.rates.items() if level == rung)
            seen = still.view(steps.widest.view(views[more.index]))  # of the largest view all others are made
            alone = by_still.classify(seen, LABELS, rate=rate)
            assert more.result.packet_bytes == few.result.packet_bytes + alone.packet_bytes
            assert more.result.opinions[0].label == few.result.best.label
            assert more.result.opinions[1].label == alone.best.label
        by_still.close()


def test_classify_takes_a_ladder(address, ladder, photos, capsys):
    words = ["classify", str(photos), "--labels", ",".join(LABELS), "--server", address, "--ladder", ladder, "--json"]
    assert main([*words, "--confidence", "0.9"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(line["opinions"]) for line in lines] == [2] * PHOTOS
    assert main([*words, "--bundle", "layered"]) == 2
    assert "--ladder replaces --bundle" in capsys.readouterr().err


def test_the_doctor_looks_at_every_step(address, ladder, student, still, capsys):
    assert main(["doctor", "--server", address, "--ladder", ladder]) == 0
    said = capsys.readouterr().out
    assert f"{student.name} goes first, and answers by itself while the link is down" in said
    assert f"{still.name} up to low" in said


def _spooled(spool: Path) -> bool:
    """Whether every photograph was accepted."""
    return spool.exists() and spool_facts(spool)["known_frames"] == PHOTOS


@pytest.mark.parametrize(
    ("text", "why"),
    [("still", "2 to 4 steps"), ("still,still:high", "twice"), ("still,no-such", "no-such"), ("still,layered:x", "x")],
)
def test_a_bad_ladder_is_named(text, why, capsys):
    assert main(["classify", "x.jpg", "--labels", "a", "--ladder", text]) == 2
    assert why in capsys.readouterr().err
    with pytest.raises(ConnectionOptionsError):
        open_ladder("")


# ---------------------------------------------------------------- in the field


def test_frames_go_as_far_as_they_need(address, run, finals, still):
    code, lines, facts, _ = run(address, "--confidence", 0.9)
    assert code == 0
    assert one_each(lines)
    assert finals.went == ["fused"] * PHOTOS
    assert (facts["asked"], facts["followed"], facts["fused"]) == (PHOTOS,) * 3
    assert facts["packets_saved_bytes"] == 0
    assert [[each["bundle"] for each in line["opinions"]][1] for line in lines] == [still.name] * PHOTOS


def test_a_sure_server_saves_the_second_packets(address, run, finals):
    code, lines, facts, _ = run(address, "--confidence", 0.5)
    assert (code, one_each(lines), facts["asked"]) == (0, True, 0)
    assert finals.went == ["first"] * PHOTOS
    assert facts["packets_saved_bytes"] > 50 * PHOTOS


def test_a_deadline_that_cannot_be_met_withholds_them(address, run, finals):
    code, lines, facts, _ = run(address, "--confidence", 0.9, "--max-kbps", 4, "--deadline", 0.3)
    assert (code, one_each(lines)) == (0, True)
    assert facts["followed"] == finals.went.count("fused") < PHOTOS


def test_a_cap_makes_them_wait(address, run):
    code, lines, facts, _ = run(address, "--confidence", 0.9, "--max-kbps", 16)
    assert (code, one_each(lines), facts["followed"]) == (0, True, PHOTOS)


def test_a_link_that_dies_between_the_packets_loses_and_doubles_nothing(engine, run, finals, student):
    relay = Relay(engine)
    with relay.running() as address:  # each stream carries one message: every frame is cut after its first packet
        code, lines, facts, _ = run(address, "--confidence", 0.9, "--in-flight", 1)
    assert (code, one_each(lines)) == (0, True)
    assert [len(line["opinions"]) for line in lines] == [2] * PHOTOS, "the server kept the first packets"
    assert finals.went == ["fused"] * PHOTOS
    assert (facts["connections"], len(relay.requests)) == (2 * PHOTOS, 2 * PHOTOS)
    firsts = [each for each in relay.requests if each.image.packet[4:8] == student.model_id]
    assert len(firsts) == PHOTOS, "no first packet was sent twice"


def test_a_server_that_forgot_answers_the_second_packet_alone_and_says_so(engine, run, finals):
    relay = Relay(engine)
    relay.before = lambda number: relay.restart() if number % 2 else None
    with relay.running() as address:
        code, lines, _, said = run(address, "--confidence", 0.9, "--in-flight", 1)
    assert (code, one_each(lines)) == (0, True)
    assert not any("opinions" in line for line in lines)
    assert finals.went == ["alone"] * PHOTOS
    assert "nothing of it is held (any more)" in said


def test_an_answer_that_gets_lost_is_given_again(engine, run, finals):
    relay = Relay(engine)
    relay.swallows = lambda number: number == 1  # the fused answer of the first frame
    with relay.running() as address:
        code, lines, _, _ = run(address, "--confidence", 0.9, "--in-flight", 1)
    assert (code, one_each(lines)) == (0, True)
    assert finals.went == ["fused"] * PHOTOS, "it was computed and counted once"


def test_without_a_calibration_that_is_said_once_and_the_first_packet_answers(engine, student, run, finals):
    kept = (student.path / FILE).read_bytes()
    (student.path / FILE).unlink()
    try:
        clip, still = Path(engine.test_clip), Path(engine.test_still)
        with opened(clip, student, load_bundle(still), None) as bare, background_server(bare) as address:
            code, lines, facts, said = run(address, "--confidence", 0.9)
    finally:
        (student.path / FILE).write_bytes(kept)
    assert (code, one_each(lines), facts["asked"]) == (0, True, 0)
    assert said.count("holds no calibration of") == 1
    assert {line["layers"] for line in lines} == {student.n_layers("mid")}


def test_kills_between_the_packets_lose_and_double_nothing(engine, address, ladder, photos, tmp_path, finals):
    """kill -9 of the device again and again, as soon as one more packet is answered.

    All frames are in the spool by then: one in work at two deaths would be given up, which is another promise.
    """
    out, spool = tmp_path / "out.jsonl", tmp_path / "spool.db"
    words = ["run", photos, "--labels", ",".join(LABELS), "--server", address, "--ladder", ladder, "--spool", spool]
    words += ["--deadline", 60, "--out", out, "--confidence", 0.9, "--in-flight", 1, "--max-kbps", 4]
    command = [sys.executable, "-m", "edge.cli", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for _ in range(3):
        before = engine.counts["answered"]
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: engine.counts["answered"] > before and _spooled(spool), 90)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert subprocess.run(command, env=env, timeout=120, check=False).returncode == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert one_each(lines)
    assert finals.went.count("fused") <= PHOTOS
