"""What a stranger types: files that never end, sources that are none, outputs and spools that are something else."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from edge.cli import main
from edge.field.sources import Lines, open_sources
from edge.field.views import parse_crop
from edge.field.watch import WatchedFile, WatchedFolder
from tests.edge.test_odd_input import process
from tests.edge.test_outside import Web, ok
from tests.tiny_bundle import photo
from tests.waiting import until
from thinwire.errors import ThinwireError
from thinwire.files import read_file


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(2):
        photo(folder, f"{number}.jpg", seed=number)
    return folder


@pytest.fixture
def line(canned, tiny_bundle) -> list[str]:
    return ["--labels", "cat,dog", "--server", canned.address, "--bundle", str(tiny_bundle.path)]


@pytest.fixture
def words(line, tmp_path) -> list[str]:
    return [*line, "--spool", str(tmp_path / "s.db")]


def names_in(path: Path) -> list[str]:
    if not path.exists():
        return []
    return sorted(Path(json.loads(each)["source"]).name for each in path.read_text().splitlines())


# ---------------------------------------------------------------- files that never end, or never begin


def test_a_pipe_without_an_end_a_device_and_a_socket_are_failed_pictures(photos, words, line, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as held:
        os.chdir(tmp_path)
        held.bind("sock.jpg")
        odd = [str(tmp_path / "pipe.jpg"), str(tmp_path / "sock.jpg")]
        assert main(["run", *odd, str(photos), *words, "--out", str(tmp_path / "o.jsonl")]) == 1
        assert names_in(tmp_path / "o.jsonl") == ["0.jpg", "1.jpg", "pipe.jpg", "sock.jpg"]
        assert main(["classify", *odd, "/dev/zero", str(photos), *line]) == 1
    said = capsys.readouterr()
    assert "2 answered, 3 failed" in said.out
    assert "pipe that nothing comes out of" in said.err
    assert "is a device" in said.err


def test_a_picture_may_come_out_of_a_pipe(photos, line, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.jpg")
    data = (photos / "0.jpg").read_bytes()

    def write() -> None:
        with open(tmp_path / "pipe.jpg", "wb") as file:
            file.write(data[:100])
            file.flush()
            file.write(data[100:])

    held = os.open(tmp_path / "pipe.jpg", os.O_RDWR)  # so that a reader that comes first does not see its end
    writer = threading.Thread(target=write)
    writer.start()
    writer.join()
    reader = os.open(tmp_path / "pipe.jpg", os.O_RDONLY | os.O_NONBLOCK)
    os.close(held)
    assert main(["classify", f"/dev/fd/{reader}", *line]) == 0
    os.close(reader)


@pytest.mark.parametrize("flag", ["--labels-file", "--token-file", "--tls-ca"])
def test_a_file_that_never_ends_is_refused_wherever_one_is_named(photos, line, flag, capsys):
    assert main(["classify", str(photos), *line, flag, "/dev/zero"]) == 2
    assert "is a device" in capsys.readouterr().err


def test_reading_is_bounded(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"x" * 100)
    assert read_file(tmp_path / "f", 100) == b"x" * 100
    with pytest.raises(OSError, match="more than 99"):
        read_file(tmp_path / "f", 99)
    monkeypatch.setattr("thinwire.files.SILENCE_S", 0.1)
    os.mkfifo(tmp_path / "p")
    held = os.open(tmp_path / "p", os.O_RDWR)
    with pytest.raises(OSError, match="gave nothing for"):
        read_file(tmp_path / "p", 100)
    os.close(held)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, 100)


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("", "empty name"),
        ("  ", "empty name"),
        ("rtsp://", "names no host"),
        ("http://", "names no host"),
        ("http://host:99999/x.jpg", "no web address"),
        ("rtsp:///stream", "names no host"),
    ],
)
def test_a_source_that_is_none_is_refused_at_once(words, word, says, capsys):
    assert main(["run", word, *words]) == 2
    assert says in capsys.readouterr().err


def test_a_scheme_that_nobody_knows_ends_the_run_and_is_not_waited_for(words, photos, tmp_path, capsys):
    pytest.importorskip("av")
    assert main(["run", "s3://bucket/x.jpg", str(photos), *words, "--out", str(tmp_path / "o.jsonl")]) == 1
    assert "s3:// is no camera" in capsys.readouterr().err
    assert names_in(tmp_path / "o.jsonl") == ["0.jpg", "1.jpg"]


def test_schemes_may_be_written_in_capitals_and_files_as_addresses(words, line, photos, tmp_path, capsys):
    web = Web()
    web.answer = lambda handler: ok(handler, (photos / "0.jpg").read_bytes(), "image/jpeg")
    shutil.copy(photos / "0.jpg", tmp_path / "with space.jpg")
    address = f"file://{tmp_path}/with%20space.jpg"
    assert main(["classify", f"HTTP://{web.address}/snap.jpg", address, *line]) == 0
    assert main(["run", address, *words, "--out", str(tmp_path / "o.jsonl")]) == 0
    assert names_in(tmp_path / "o.jsonl") == ["with space.jpg"]
    web.close()


@pytest.mark.parametrize("end", [b"\0", b""])
def test_names_may_be_separated_by_zero_bytes(photos, words, tmp_path, end):
    odd = photos / "new\nline.jpg"
    shutil.copy(photos / "0.jpg", odd)
    names = b"\0".join(map(os.fsencode, (photos / "0.jpg", odd, photos / "1.jpg"))) + end
    done = subprocess.run(**process("run", "-", *words, "--out", tmp_path / "o.jsonl"), input=names, timeout=60)
    assert done.returncode == 0
    assert names_in(tmp_path / "o.jsonl") == ["0.jpg", "1.jpg", "new\nline.jpg"]


@pytest.mark.parametrize("data", ["picture", b"x" * (1 << 21)])
def test_stdin_that_holds_no_names_is_one_error(photos, words, tmp_path, data):
    data = (photos / "0.jpg").read_bytes() if data == "picture" else data
    done = subprocess.run(
        **process("run", "-", *words, "--out", tmp_path / "o.jsonl"), input=data, capture_output=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.count(b"stdin: holds") == 1
    assert not (tmp_path / "o.jsonl").exists()


def test_names_come_one_by_one_as_they_are_written():
    read, write = os.pipe()
    with open(read) as stream:
        shots = Lines("q", stream).shots(threading.Event())
        os.write(write, b"a.jpg\nb.")
        assert next(shots).source == "a.jpg"
        os.write(write, b"jpg\n")
        assert next(shots).source == "b.jpg"
        os.close(write)
        assert list(shots) == []


def watched(word: str, folder: Path, canned, tiny_bundle) -> subprocess.Popen:
    words = ["--labels", "cat,dog", "--server", canned.address, "--bundle", tiny_bundle.path]
    command = process("run", word, "--watch", *words, "--spool", folder / "s.db", "--out", folder / "o.jsonl")
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(**command, stderr=log)


def test_a_folder_that_is_made_later_is_waited_for(photos, tmp_path, canned, tiny_bundle):
    run = watched(str(tmp_path / "later"), tmp_path, canned, tiny_bundle)
    until(lambda: "looking again" in (tmp_path / "log").read_text())
    shutil.copytree(photos, tmp_path / "later")
    until(lambda: names_in(tmp_path / "o.jsonl") == ["0.jpg", "1.jpg"])
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 0


@pytest.mark.parametrize("there", [True, False])
def test_one_file_can_be_watched(photos, tmp_path, canned, tiny_bundle, there):
    """`latest.jpg` of a camera, which other files lie beside."""
    latest = photos / "latest.jpg"
    if there:
        shutil.copy(photos / "0.jpg", latest)
    run = watched(str(latest), tmp_path, canned, tiny_bundle)
    if not there:
        until(lambda: "not there yet" in (tmp_path / "log").read_text())
    else:
        until(lambda: names_in(tmp_path / "o.jsonl") == ["latest.jpg"])
    for seed in (7, 8):
        before = len(names_in(tmp_path / "o.jsonl"))
        os.replace(photo(tmp_path, "new.jpg", seed=seed), latest)
        until(lambda before=before: len(names_in(tmp_path / "o.jsonl")) == before + 1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 0
    assert set(names_in(tmp_path / "o.jsonl")) == {"latest.jpg"}


def test_what_watch_means_for_each_kind_of_word(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "odd").write_bytes(b"x")

    sources = [str(tmp_path), str(tmp_path / "a.jpg"), str(tmp_path / "odd"), "none", "none.png"]
    args = argparse.Namespace(watch=True, fps=None, sources=sources)
    kinds = [type(each) for each in open_sources(args, "q", print)]
    assert kinds == [WatchedFolder, WatchedFile, WatchedFile, WatchedFolder, WatchedFile]


@pytest.mark.parametrize("crop", ["nan,0,1,1", "0,0,inf,1", "-inf,0,1,1", "0,0,nan,nan"])
def test_a_crop_is_of_numbers(crop):
    with pytest.raises(ThinwireError, match="--crop"):
        parse_crop(crop)


# ---------------------------------------------------------------- outputs and spools that are something else


@pytest.mark.parametrize("kind", ["picture", "labels", "database", "csv"])
def test_a_file_that_is_no_output_is_left_alone(photos, words, tmp_path, kind, capsys):
    path = tmp_path / ("other.csv" if kind == "csv" else "other")
    if kind == "picture":
        shutil.copy(photos / "0.jpg", path)
    elif kind == "database":
        import sqlite3

        sqlite3.connect(path).executescript("CREATE TABLE x (a); INSERT INTO x VALUES (1)")
    else:
        path.write_text("name,price\nhammer,3\n" if kind == "csv" else "cat\ndog\n")
    before = path.read_bytes()
    assert main(["run", str(photos), *words, "--out", str(path)]) == 2
    assert path.read_bytes() == before
    assert "name another file" in capsys.readouterr().err


def test_the_spool_is_no_output(photos, words, tmp_path, capsys):
    assert main(["run", str(photos), *words, "--out", str(tmp_path / "s.db")]) == 1
    assert "name another file" in capsys.readouterr().err
    assert main(["run", str(photos), *words, "--out", str(tmp_path / "o.jsonl")]) == 0
    assert names_in(tmp_path / "o.jsonl") == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize("held", [b"", b"\n\n", b"\0\0\0\0", b'\xef\xbb\xbf{"key": 1}\n', b'{"ke'])
def test_a_file_that_may_be_ours_is_written(photos, words, tmp_path, held):
    path = tmp_path / "o.jsonl"
    path.write_bytes(held)
    assert main(["run", str(photos), *words, "--out", str(path)]) == 0
    assert path.read_bytes().count(b'"final":true') == 2


def test_two_names_of_one_output_are_one(photos, words, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "o.jsonl")
    outs = [tmp_path / "o.jsonl", tmp_path / "x" / ".." / "o.jsonl", tmp_path / "link.jsonl"]
    assert main(["run", str(photos), *words, *(word for out in outs for word in ("--out", str(out)))]) == 0
    assert names_in(tmp_path / "o.jsonl") == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize("kind", ["picture", "archive", "database", "folder"])
def test_a_file_that_is_no_spool_is_left_alone(photos, line, tmp_path, kind, capsys):
    path = tmp_path / "other"
    if kind == "picture":
        shutil.copy(photos / "0.jpg", path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "database":
        import sqlite3

        sqlite3.connect(path).executescript("CREATE TABLE x (a); INSERT INTO x VALUES (1)")
    else:
        path.write_bytes(b"PK\x03\x04" + bytes(2000))
    before = path.read_bytes() if path.is_file() else None
    assert main(["run", str(photos), *line, "--spool", str(path)]) == 2
    assert before is None or path.read_bytes() == before
    assert "with --spool" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.damaged*"))


def test_a_link_to_a_folder_that_is_not_there_yet_makes_it(photos, line, tmp_path):
    (tmp_path / "link.db").symlink_to(tmp_path / "new" / "s.db")
    words = [*line, "--spool", str(tmp_path / "link.db"), "--out", str(tmp_path / "o.jsonl")]
    assert main(["run", str(photos), *words]) == 0
    assert (tmp_path / "new" / "s.db").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("command", ["classify", "classify --json", "inspect", "status", "run"])
def test_an_output_that_takes_nothing_is_one_line(photos, line, words, tmp_path, command):
    name, *flags = command.split()
    target = {"inspect": [line[-1]], "status": ["--spool", str(tmp_path / "s.db")]}.get(name, [str(photos)])
    options = {"classify": line, "run": [*words, "--summary"]}.get(name, [])
    if name == "status":
        assert main(["run", str(photos), *words, "--out", str(tmp_path / "o.jsonl")]) == 0
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            **process(name, *target, *flags, *options), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 2
    assert "the standard output cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_streams_that_were_closed_keep_their_numbers(tmp_path):
    """Else the first socket that is opened would be number 2, and what C libraries print would go to it."""
    code = "from thinwire.text import safe_streams; safe_streams(); print(open('/dev/null').fileno() > 2, flush=True)"
    shell = f'exec {process()["args"][0]} -c "{code}" 0<&- 2>&-'
    done = subprocess.run(["sh", "-c", shell], stdout=subprocess.PIPE, env=process()["env"], text=True, timeout=60)
    assert done.stdout == "True\n"


def test_a_proxy_that_is_not_there_is_named_without_its_password(photos, line, monkeypatch, capsys, dead_address):
    monkeypatch.setenv("grpc_proxy", f"http://u:hunter2@{dead_address}")
    line = [*line, "--server", "10.255.255.1:50051", "--timeout", "5"]
    assert main(["classify", str(photos), *line]) == 2
    said = capsys.readouterr().err
    assert f"the proxy http://{dead_address}" in said
    assert "no_proxy=10.255.255.1" in said
    assert "thinwire-cloud serve" not in said
    assert "hunter2" not in said
