"""The unit's `MemoryMax=400M` as the kernel enforces it: a folder of odd and large pictures, and no kill."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.edge.test_chaos import filled
from tests.edge.test_odd_input import process

LIMIT_BYTES = 400 << 20  # docs/thinwire-edge.service
VERSION_1, VERSION_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class Group:
    """A control group with the unit's limit."""

    def __init__(self, folder: Path, limit: str, peak: str, killed: tuple[str, str]) -> None:
        self.folder, self._peak, self._killed = folder, peak, killed
        (folder / limit).write_text(str(LIMIT_BYTES))

    def inside(self, command: dict) -> dict:
        """The command, with its process in the group from the start."""
        enter = f'echo $$ > "{self.folder}/cgroup.procs" && exec "$@"'
        return command | {"args": ["sh", "-c", enter, "sh", *command["args"]]}

    @property
    def peak_bytes(self) -> int:
        return int((self.folder / self._peak).read_text())

    @property
    def kills(self) -> int:
        name, word = self._killed
        lines = dict(line.rsplit(" ", 1) for line in (self.folder / name).read_text().splitlines())
        return int(lines.get(word, 0))


@pytest.fixture
def group() -> Iterator[Group]:
    first = (VERSION_1 / "memory.limit_in_bytes").exists()
    folder = (VERSION_1 if first else VERSION_2) / f"thinwire-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("needs the right to make a control group")
    try:
        if first:
            yield Group(
                folder, "memory.limit_in_bytes", "memory.max_usage_in_bytes", ("memory.oom_control", "oom_kill")
            )
        elif (folder / "memory.peak").exists():
            yield Group(folder, "memory.max", "memory.peak", ("memory.events", "oom_kill"))
        else:
            pytest.skip("the control group has no memory controller")
    finally:
        folder.rmdir()


@pytest.mark.slow
def test_large_and_odd_pictures_stay_under_the_limit_that_the_kernel_holds(group, canned, tiny_bundle, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    good, bad, _ = filled(folder)
    noise = Image.effect_noise((6000, 4000), 60).convert("RGB")
    noise.save(folder / "24 megapixels.jpg", quality=80)
    noise.save(folder / "progressive.jpg", quality=80, progressive=True)
    noise.crop((0, 0, 4000, 3000)).save(folder / "12 megapixels.png", compress_level=1)
    Image.new("RGB", (9400, 9400), (9, 80, 200)).save(folder / "88 megapixels.png")  # 353 MB of pixels: refused
    good |= {"24 megapixels.jpg", "progressive.jpg", "12 megapixels.png"}
    bad |= {"88 megapixels.png"}
    words = ["--labels", "cat,dog", "--server", canned.address, "--bundle", tiny_bundle.path]
    words += ["--spool", tmp_path / "s.db", "--out", tmp_path / "o.jsonl"]
    done = subprocess.run(**group.inside(process("run", folder, *words)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr  # some are no pictures
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert {Path(line["source"]).name for line in lines if line["ok"]} == good
    assert {Path(line["source"]).name for line in lines if not line["ok"]} == bad
    assert group.kills == 0
    assert group.peak_bytes < LIMIT_BYTES
