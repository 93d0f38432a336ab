"""Everything at once: every odd file, a camera that vanishes, outputs that die and return, a full disk, a bad line.

All good frames are answered once, everything else is accounted for by name, the exit code is right, and the process
stays below the memory that its unit allows.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tests.edge.canned import answer_frame, cut, keep_silent
from tests.edge.odd_images import bad_images, good_images
from tests.edge.test_outside import Web, ok
from tests.tiny_bundle import photo
from tests.tiny_disk import mounted_disk
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
UNIT_BYTES = 400 << 20  # MemoryMax of docs/thinwire-edge.service


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def filled(folder: Path) -> tuple[set[str], set[str], list[str]]:
    """Names of files that are to be answered, of those that are to fail, and endings that are to be left out."""
    good = {path.name for path in good_images(folder)}
    bad = {path.name for path in bad_images(folder)}
    large = Image.new("RGB", (8160, 6120), (90, 120, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    large.save(folder / "fifty megapixels.jpg", quality=50, exif=exif)
    shutil.copy(folder / "plain.jpg", os.path.join(os.fsencode(folder), b"caf\xe9-good.jpg"))
    shutil.copy(folder / "plain.jpg", folder / "new\nline \x1b[2J \u202e東.jpg")
    good |= {"fifty megapixels.jpg", "caf\ufffd-good.jpg", "new\nline \x1b[2J \u202e東.jpg"}
    Path(os.fsdecode(os.path.join(os.fsencode(folder), b"caf\xe9-bad.jpg"))).write_bytes(b"x")
    (folder / "long link.jpg").symlink_to("x" * 300)
    (folder / "loop.jpg").symlink_to("loop.jpg")
    bad |= {"caf\ufffd-bad.jpg", "long link.jpg", "loop.jpg"}
    os.mkfifo(folder / "pipe.jpg")
    for name in ("phone.heic", "modern.jxl", "clip.mp4", "notes.txt"):
        (folder / name).write_bytes(b"x")
    return good, bad, [".heic", ".jxl", ".mp4", ".txt"]


def lines_of(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with contextlib.suppress(ValueError):
        return [json.loads(line) for line in path.read_text().splitlines()]
    return []


def peak_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    return 0


@pytest.mark.slow
def test_everything_at_once(folder, canned, tiny_bundle, tmp_path):
    good, bad, left_out = filled(folder)
    picture = photo(tmp_path, "camera.jpg", seed=77).read_bytes()
    camera, hook = Web(), Web()
    camera.answer = lambda handler: ok(handler, picture, "image/jpeg")
    hook.answer = lambda handler: ok(handler, code=503)
    canned.frame_script.extend([answer_frame, cut, keep_silent, answer_frame, cut])
    url = f"http://admin:hunter2@{camera.address}/snap.jpg"
    with mounted_disk(tmp_path / "disk", "1m") as disk:
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        sure, full, log = tmp_path / "sure.jsonl", disk / "out.jsonl", tmp_path / "log"
        words = ["--labels", "cat,dog", "--summary", "--server", canned.address, "--bundle", str(tiny_bundle.path)]
        words += ["--spool", str(tmp_path / "s.db"), "--timeout", "2", "--out", str(sure), "--out", str(full)]
        words += ["--webhook", f"http://u:hunter3@{hook.address}/x"]
        command = [sys.executable, "-m", "edge.cli", "run", str(folder)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        peak = 0

        def files_done() -> bool:
            nonlocal peak
            peak = max(peak, peak_bytes(run.pid))
            assert run.poll() is None, log.read_text()
            names = {Path(line["source"]).name for line in lines_of(sure)}
            return good | bad <= names

        with open(log, "w") as stderr:
            run = subprocess.Popen(
                [*command, url, "--fps", "2", *words], env=env, stderr=stderr, stdout=subprocess.PIPE
            )
            until(files_done, 90)
            until(lambda: any("snap" in line["source"] for line in lines_of(sure)))
            until(lambda: full.name in log.read_text() and hook.address in log.read_text())
            camera.close()  # it vanishes, while the disk is freed and the receiver returns
            until(lambda: "opening it again" in log.read_text())
            ballast.unlink()
            hook.answer = ok
            run.send_signal(signal.SIGTERM)
            out, _ = run.communicate(timeout=60)
        said = log.read_text()
        assert run.returncode == 1, said  # some files are no pictures
        facts = json.loads(out.splitlines()[-1])
        assert facts["unreadable"] == len(bad)
        assert all(ending in said for ending in left_out)
        assert "pipe" not in "".join(line["source"] for line in lines_of(sure))
        assert 0 < peak < UNIT_BYTES
        # The same command once more: nothing new, and every output holds every result
        again = subprocess.run([*command, *words], env=env, capture_output=True, timeout=90)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout.splitlines()[-1])["known"] == len(good | bad)
        held = [lines_of(sure), lines_of(full), [json.loads(body) for _, _, _, body in hook.requests]]
    hook.close()
    by_name = {Path(line["source"]).name: line for line in held[0]}
    assert {name for name, line in by_name.items() if line["ok"]} == good | {"snap.jpg"}
    assert {name for name, line in by_name.items() if not line["ok"]} == bad
    assert all(line["error"]["message"] for line in held[0] if not line["ok"])
    assert set(Counter(line["key"] for line in held[0]).values()) == {1}
    assert [line["key"] for line in held[1]] == [line["key"] for line in held[0]]
    assert {line["key"] for line in held[2]} == {line["key"] for line in held[0]}
    everything = said + again.stderr.decode() + sure.read_text() + out.decode()
    everything += (tmp_path / "s.db").read_bytes().decode("latin-1")
    assert "hunter" not in everything
    assert "\x1b" not in said
