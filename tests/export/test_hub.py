"""`--images hf:NAME[:SPLIT]` against a hub of our own: the real library over HTTP, parquet and folders of pictures."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

datasets = pytest.importorskip("datasets")
pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).resolve().parents[2]
SHA = "a" * 40
COUNT = 6
# Reads a source in a process of its own: the library takes its settings from the environment at import
READ = """
import json, sys
from pathlib import Path
from export.photographs.errors import PhotographsError
from export.photographs.hub import from_hub
from export.photographs.sources import parse_source
try:
    source = parse_source(sys.argv[1], *sys.argv[3:])
    found = list(from_hub(source, Path(sys.argv[2])))
    print(json.dumps([[each.offset, each.size, each.captions] for each in found]))
except PhotographsError as error:
    print(json.dumps(str(error)))
"""


class Hub:
    """Serves the files of `folder` as the data set me/pics, as the hub does."""

    def __init__(self, folder: Path) -> None:
        self.broken = False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
                names = [each.relative_to(folder).as_posix() for each in sorted(folder.rglob("*")) if each.is_file()]
                about = {name: {"type": "file", "path": name, "size": (folder / name).stat().st_size} for name in names}
                for name, each in about.items():
                    each["oid"] = hashlib.sha1(name.encode()).hexdigest()
                if path in ("/api/datasets/me/pics", f"/api/datasets/me/pics/revision/{SHA}"):
                    siblings = [{"rfilename": name} for name in names]
                    self.send(json.dumps({"_id": "1", "id": "me/pics", "sha": SHA, "siblings": siblings}).encode())
                elif path.startswith("/api/datasets/me/pics/tree/"):
                    below = path.split("/tree/", 1)[1].partition("/")[2]
                    files = [each for name, each in about.items() if not below or name.startswith(f"{below}/")]
                    folders = {os.path.dirname(name) for name in names} - {"", below}
                    listed = [{"type": "directory", "path": each, "size": 0, "oid": "b" * 40} for each in folders]
                    self.send(json.dumps(files + listed).encode())
                elif "/paths-info/" in path:
                    size = int(self.headers.get("Content-Length") or 0)
                    asked = self.rfile.read(size).decode()
                    wanted = urllib.parse.parse_qs(asked).get("paths") or json.loads(asked or "{}").get("paths", [])
                    self.send(json.dumps([about[name] for name in wanted if name in about]).encode())
                elif "/resolve/" in path and (name := path.split("/resolve/", 1)[1].partition("/")[2]) in about:
                    if outer.broken:
                        self.send(b"", 503)
                    else:
                        self.send((folder / name).read_bytes(), 200, about[name]["oid"])
                else:
                    self.send(b"", 404)

            do_GET = do_HEAD = do_POST = answer

            def send(self, data: bytes, code: int = 200, tag: str | None = None) -> None:
                headers = {"X-Repo-Commit": SHA, "Accept-Ranges": "bytes"} | ({"ETag": f'"{tag}"'} if tag else {})
                if code == 404:
                    headers["X-Error-Code"] = "EntryNotFound"
                if tag and (wanted := self.headers.get("Range")):
                    first, _, last = wanted.removeprefix("bytes=").partition("-")
                    begin, end, total = int(first or 0), int(last or len(data) - 1), len(data)
                    data, code = data[begin : end + 1], 206
                    headers["Content-Range"] = f"bytes {begin}-{min(end, total - 1)}/{total}"
                self.send_response(code)
                for key, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(COUNT):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (24, 36, 3), dtype=np.uint8)).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return found


@pytest.fixture(params=["parquet", "folder"])
def hub(request, pictures, tmp_path) -> Iterator[Hub]:
    folder = tmp_path / "hub"
    if request.param == "parquet":
        (folder / "data").mkdir(parents=True)
        stored = [{"bytes": data, "path": None} for data in pictures]
        texts = [f"picture {number}" for number in range(COUNT)]
        pq.write_table(pa.table({"photo": stored, "text": texts}), folder / "data" / "train-00000-of-00001.parquet")
    else:
        (folder / "train").mkdir(parents=True)
        for number, data in enumerate(pictures):
            (folder / "train" / f"{number:03d}.jpg").write_bytes(data)
    hub = Hub(folder)
    hub.kind = request.param
    yield hub
    hub.close()


@pytest.fixture
def dead_address() -> str:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, never listening
        yield f"127.0.0.1:{held.getsockname()[1]}"


def read(place: str, tmp_path: Path, endpoint: str, *caption: str) -> tuple[object, str]:
    """What the source gives, or its error; and what came on stderr."""
    (tmp_path / "kept").mkdir(exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", READ, place, str(tmp_path / "kept"), *caption]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_pictures_are_streamed_as_they_are_stored(hub, pictures, tmp_path):
    found, _ = read("hf:me/pics", tmp_path, hub.address, *(["text"] if hub.kind == "parquet" else []))
    kept = (tmp_path / "kept" / "pictures.bin").read_bytes()
    assert [kept[offset : offset + size] for offset, size, _ in found] == pictures
    if hub.kind == "parquet":
        assert [captions for _, _, captions in found] == [[f"picture {number}"] for number in range(COUNT)]


@pytest.mark.slow
def test_what_is_not_there_is_one_line(hub, tmp_path):
    for place, caption, said in (
        ("hf:me/none", [], "cannot be had from the hub"),
        ("hf:me/pics:nights", [], "cannot be had from the hub"),
        ("hf:me/pics", ["colour"], "no column 'colour'"),
    ):
        error, _ = read(place, tmp_path, hub.address, *caption)
        assert said in error
        assert "\n" not in error


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line_and_says_nothing_else(tmp_path, dead_address):
    error, printed = read("hf:me/pics", tmp_path, f"http://{dead_address}")
    assert "check the name, the split and the network" in error
    assert "Retry" not in printed
    assert "Traceback" not in printed
