"""One input never ends the run: odd names, crops, exceptions of every kind, frames that kill the process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.cli import main
from edge.field.in_work import InWork
from edge.field.sources import Lines
from tests.tiny_bundle import photo
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
LABELS = "cat,dog,car"


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        photo(folder, f"{number}.jpg", seed=number)
    return folder


@pytest.fixture
def words(canned, tiny_bundle, tmp_path) -> list[str]:
    where = ["--server", canned.address, "--bundle", str(tiny_bundle.path), "--spool", str(tmp_path / "s.db")]
    return ["--labels", LABELS, "--summary", *where]


@pytest.fixture
def out(tmp_path) -> Callable[[], dict[str, dict]]:
    """Final lines by the file's name."""

    def read() -> dict[str, dict]:
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert len({line["key"] for line in lines}) == len(lines)
        return {Path(line["source"]).name: line for line in lines if line["final"]}

    return read


def process(*words: object, **environment: str) -> dict:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return {"args": [sys.executable, "-m", "edge.cli", *map(os.fsencode, map(str, words))], "env": env}


def run(photos: object, words: list[str], tmp_path: Path, *more: object) -> int:
    return main(["run", str(photos), *words, "--out", str(tmp_path / "out.jsonl"), *map(str, more)])


ODD_NAMES = [b"caf\xe9", b"\xff\xfe", b"new\nline", b"esc\x1b[2J", b"surrogate\xed\xa0\x80", b"-", b"%s", b"' OR 1=1"]
ODD_NAMES += ["e\u0301\u202e東\U0001f600".encode()]


def test_names_of_any_bytes_get_their_line_and_the_others_theirs(photos, words, tmp_path, out, capfd):
    for name in ODD_NAMES:
        shutil.copy(photos / "0.jpg", os.path.join(os.fsencode(photos), name + b"-good.jpg"))
        Path(os.fsdecode(os.path.join(os.fsencode(photos), name + b"-bad.jpg"))).write_bytes(b"x")
    assert run(photos, words, tmp_path) == 1
    lines = out()
    assert len(lines) == 4 + 2 * len(ODD_NAMES)
    assert all(line["ok"] == ("-bad" not in name) for name, line in lines.items())
    assert "\x1b" not in capfd.readouterr().err
    assert run(photos, words, tmp_path) == 0  # nothing is tried again, nothing is in the way
    assert len(out()) == len(lines)


def test_outputs_spools_and_folders_may_have_odd_names_too(photos, words, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    odd.mkdir()
    shutil.copytree(photos, odd / "in")
    shutil.copy(photos / "0.jpg", odd / os.fsdecode(b"in/\xe9.jpg"))
    spool = ["--spool", str(odd / "s.db")]
    assert (
        main(["run", str(odd / "in"), *words, *spool, "--out", str(odd / "o.jsonl"), "--out", str(odd / "o.csv")]) == 0
    )
    assert len((odd / "o.jsonl").read_text().splitlines()) == 5
    assert len((odd / "o.csv").read_text().splitlines()) == 6
    assert main(["status", "--spool", str(odd / "s.db")]) == 0


def test_a_crop_outside_a_picture_is_that_pictures_end_alone(photos, words, tmp_path, out, capsys):
    from PIL import Image

    Image.new("RGB", (700, 300)).save(photos / "wide.png")
    assert run(photos, words, tmp_path, "--crop", "640,200,400,400") == 1
    lines = out()
    assert [name for name, line in lines.items() if line["ok"]] == ["wide.png"]
    bad = lines["0.jpg"]["error"]
    assert (bad["reason"], "96x80" in bad["message"] or "pixels" in bad["message"]) == ("CROP_OUTSIDE", True)
    assert run(photos, words, tmp_path, "--crop", "640,200,400,400") == 0  # known, each with its line
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["known"] == 5


class Panic(BaseException):
    """What a library in Rust raises: no Exception."""


ERRORS = [MemoryError(), RecursionError("deep"), ValueError("\udce9"), KeyError(3), Panic("lib.rs"), OSError(5, "I/O")]


@pytest.mark.parametrize("place", ["edge.encoder.read_image", "edge.encoder.Encoder.symbols"])
def test_any_exception_of_one_frame_becomes_its_line(photos, words, tmp_path, out, monkeypatch, place):
    from edge.encoder import Encoder, read_image

    usual = read_image if place.endswith("read_image") else Encoder.symbols
    left = [*([None] if usual is Encoder.symbols else []), None, *ERRORS]  # the encoder's warm-up comes first

    def failing(*args, **more):
        error = left.pop(0) if left else None
        if error is not None:
            raise error
        return usual(*args, **more)

    for number in range(4, 8):
        photo(photos, f"{number}.jpg", seed=number)
    monkeypatch.setattr(place, failing)
    assert run(photos, words, tmp_path) == 1
    lines = out()
    assert {name for name, line in lines.items() if line["ok"]} == {"0.jpg", "7.jpg"}
    reasons = [line["error"]["reason"] for _, line in sorted(lines.items()) if not line["ok"]]
    assert reasons == ["OUT_OF_MEMORY", *["INTERNAL"] * 5]
    assert all(name in line["error"]["message"] for name, line in lines.items() if not line["ok"])


def test_classify_goes_on_after_an_exception_that_nobody_expected(photos, words, tmp_path, monkeypatch, capsys):
    from edge.encoder import read_image

    def odd(image, *rest):
        if str(image).endswith("1.jpg"):
            raise RecursionError("deep")
        return read_image(image, *rest)

    monkeypatch.setattr("edge.encoder.read_image", odd)
    line = words[words.index("--server") :][:4]
    assert main(["classify", str(photos), "--labels", LABELS, "--json", *line]) == 1
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["ok"] for each in records] == [True, False, True, True]


KILLER = """
import os, signal, sys
import edge.encoder as encoder
usual = encoder.read_image
def read(image, *rest):
    if str(image).endswith("1.jpg"):
        os.kill(os.getpid(), signal.SIGKILL)
    return usual(image, *rest)
encoder.read_image = read
from edge.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_frame_that_kills_the_process_twice_is_given_up(photos, words, tmp_path, out):
    command = process("run", photos, *words, "--out", tmp_path / "out.jsonl")
    command["args"][1:3] = ["-c", KILLER]
    codes = [subprocess.run(**command, capture_output=True, timeout=60).returncode for _ in range(3)]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 1]
    lines = out()
    assert sorted(lines) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [name for name, line in lines.items() if not line["ok"]] == ["1.jpg"]
    assert lines["1.jpg"]["error"]["reason"] == "GIVEN_UP"


def test_deaths_are_counted_by_frame_and_forgotten_with_a_result(tmp_path):
    note = tmp_path / "working"
    first, second = b"1" * 16, b"2" * 16
    dead = []
    for _ in range(2):
        held = InWork(note)
        with held.on(second):
            pass
        dead.append(held.on(first))
        dead[-1].__enter__()  # and the process dies
        held.close()
    held = InWork(note)
    assert (held.given_up(first), held.given_up(second)) == (True, False)
    held.forget(first)
    held.close()
    assert not InWork(note).given_up(first)
    note.write_bytes(b"\xff not json")
    assert not InWork(note).given_up(first)
    assert not InWork(tmp_path / "no" / "folder").given_up(first)  # a disk that takes nothing: no note, no trouble


# ---------------------------------------------------------------- threads that feed


@pytest.mark.parametrize("target", ["x" * 300, "a.jpg", "/proc/self/fd/999999", "x\udce9" * 140])
def test_a_link_to_nowhere_is_one_failed_picture_for_every_command(photos, words, tmp_path, out, target):
    (photos / "a.jpg").symlink_to(target)
    assert run(photos, words, tmp_path) == 1
    assert not out()["a.jpg"]["ok"]
    assert len(out()) == 5
    line = words[words.index("--server") :][:4]
    assert main(["classify", str(photos), "--labels", LABELS, *line]) == 1
    assert main(["encode", str(photos), "-o", str(tmp_path / "packets"), *line[2:]]) == 1


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"\xff" * 300, b"nul\0.jpg", b"a/" * 3000 + b"b.jpg"])
def test_any_line_on_stdin_is_a_frame(photos, words, tmp_path, name):
    text = b"\n".join([os.fsencode(photos / "0.jpg"), name, os.fsencode(photos / "1.jpg")])
    command = process("run", "-", *words, "--out", tmp_path / "out.jsonl")
    done = subprocess.run(**command, input=text, capture_output=True, timeout=60)
    assert done.returncode == 1, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(line["ok"] for line in lines) == [False, True, True]


def test_a_source_that_raises_is_told_counted_and_ends_the_run(photos, words, tmp_path, monkeypatch, capsys):
    def broken(self, stop):
        yield from ()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("edge.field.sources.Files.shots", broken)
    assert run(photos, words, tmp_path) == 1
    said = capsys.readouterr()
    assert "Input/output error" in said.err
    assert "no source is left" in said.err
    assert json.loads(said.out.splitlines()[-1])["sources_failed"] == 1


def test_lines_ends_with_its_stream_and_reads_names_of_any_bytes():
    import io

    stream = io.TextIOWrapper(io.BytesIO(b"a.jpg\r\n\n\xe9.jpg"), encoding="ascii")
    names = [os.fsencode(shot.image) for shot in Lines("q", stream).shots(threading.Event())]
    assert names == [b"a.jpg", b"\xe9.jpg"]


# ---------------------------------------------------------------- what is printed


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-16"])
def test_answers_come_out_on_a_stdout_of_any_encoding(photos, words, tmp_path, encoding):
    line = words[words.index("--server") :][:4]
    shutil.copy(photos / "0.jpg", photos / os.fsdecode(b"\xe9.jpg"))
    environment = {"PYTHONIOENCODING": encoding}
    command = process("classify", photos, "--labels", "猫,café", *line, **environment)
    done = subprocess.run(**command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "5 images, 5 answered" in done.stdout.decode(encoding)
    spool = ["--spool", tmp_path / "two.db"]
    command = process("run", photos, "--labels", "猫,café,\U0001f600", *line, *spool, **environment)
    done = subprocess.run(**command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(each) for each in done.stdout.decode(encoding).splitlines()]
    assert {each["label"] for each in lines[0]["predictions"]} == {"猫", "café", "\U0001f600"}


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_ends_nothing(photos, words, tmp_path, closed):
    command = process("run", photos, *words, "--out", tmp_path / "out.jsonl")
    # By a shell, not by `preexec_fn`: Python code in a fork of a process with threads may wait for ever for their locks
    command["args"] = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *command["args"]]
    done = subprocess.run(**command, timeout=60)
    assert done.returncode == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 4


def test_watching_goes_on_after_a_look_that_fails(photos, words, tmp_path, monkeypatch, capsys):
    """The folder is taken away (an SD card) and comes back; a look raises what nobody expected."""
    from edge.field.watch import WatchedFolder

    said: list[str] = []
    watch, stop, shots = WatchedFolder(str(photos), "q", said.append), threading.Event(), []
    monkeypatch.setattr("edge.field.watch.SCAN_EVERY_S", 0.05)
    thread = threading.Thread(target=lambda: shots.extend(watch.shots(stop)), daemon=True)
    looks: list[int] = []
    usual = WatchedFolder._walk

    def walk(self, *rest):
        looks.append(1)
        if len(looks) == 2:
            raise RuntimeError("odd")
        return usual(self, *rest)

    monkeypatch.setattr(WatchedFolder, "_walk", walk)
    thread.start()
    until(lambda: any("odd" in each for each in said))
    until(lambda: watch.trouble is None)
    photos.rename(tmp_path / "away")
    until(lambda: watch.trouble is not None)
    (tmp_path / "away").rename(photos)
    photo(photos, "new.jpg", seed=9)
    until(lambda: watch.trouble is None and len(looks) > 20)
    stop.set()
    thread.join(60)
    assert {Path(shot.source).name for shot in shots} >= {"0.jpg", "1.jpg", "2.jpg", "3.jpg"}
    assert sum("can be read again" in each for each in said) == 2


# ---------------------------------------------------------------- the courier


def test_an_answer_that_is_none_is_that_frames_line(photos, words, tmp_path, out, canned):
    """Numbers that JSON has no word for, an outcome that is not set: not written, and not asked for again for ever."""
    from thinwire.v1 import inference_pb2 as pb

    def not_finite(request, context):
        prediction = pb.Prediction(label="cat", probability=float("nan"), similarity=float("inf"))
        result = pb.ClassifyResponse(frame_id=request.frame_id, predictions=[prediction])
        yield pb.ClassifyStreamResponse(frame_id=request.frame_id, result=result)

    canned.frame_script.extend([not_finite])
    assert run(photos, words, tmp_path) == 1
    lines = out()
    assert len(lines) == 4
    (bad,) = [line for line in lines.values() if not line["ok"]]
    assert bad["error"]["reason"] == "INTERNAL"
