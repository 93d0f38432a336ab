"""The frame store on damaged files and full disks: it goes on, and everything is accounted for."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from cloud.errors import BadConfiguration, StoreFailed
from cloud.search.archive import Archive
from cloud.search.frames import Filter
from cloud.search.store import FrameStore
from cloud.search.store_file import set_aside
from tests.cloud.served import classify
from tests.cloud.test_search import nearest, seen
from tests.tiny_disk import mounted_disk
from tests.waiting import until
from thinwire.v1 import search_pb2

FRAMES = 300


@pytest.fixture
def file(tmp_path) -> Path:
    """A closed store of `FRAMES` frames."""
    path = tmp_path / "frames.db"
    filled(path)
    return path


def filled(path: Path) -> None:
    held = Archive(path, clock=lambda: 1000.0)
    for seed in range(FRAMES):
        held.answered(seen(seed, at=1000.0 + seed, packet=b"TW" + bytes(600)))
    held.close()
    assert held.dropped == 0


def every_second_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 8192):
        data[start : start + 4096] = os.urandom(4096)
    path.write_bytes(data)


def cut_to_a_third(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def no_database(path: Path) -> None:
    path.write_bytes(b"this is no database at all, it only lies there" * 100)


def header_overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(4096))


def one_page_in_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(os.urandom(4096))


def last_page_of_zeros(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (every_second_page, FRAMES // 3),
        (cut_to_a_third, FRAMES // 5),
        (no_database, 0),
        (header_overwritten, 0),
        (one_page_in_the_middle, FRAMES - 10),
        (last_page_of_zeros, FRAMES - 10),
    ],
)
def test_a_damaged_store_is_set_aside_and_what_can_be_read_is_kept(file, damage, kept, caplog):
    damage(file)
    before = file.read_bytes()
    held = Archive(file, clock=lambda: 2000.0)
    try:
        (aside,) = (each for each in set_aside(file) if not each.name.endswith(("-wal", "-shm")))
        assert aside.read_bytes() == before
        assert aside.stat().st_mode & 0o077 == 0
        assert str(aside) in caplog.text
        assert f"{held.store.frames} frames were taken over" in caplog.text
        assert kept <= held.store.frames < FRAMES
        held.answered(seen(7, at=2000.0))
        held.flush()
        found = nearest(held, 7, count=500)
        assert len(found) == held.store.frames == held.store._db.execute("SELECT count(*) FROM frames").fetchone()[0]
        assert found[0].similarity == pytest.approx(1, abs=2e-3)
        if kept == FRAMES - 10:
            assert max(each.id for each in found) == FRAMES + 1  # a lost frame's id is not given again
    finally:
        held.close()


def test_damage_while_the_service_runs(file, caplog):
    held = Archive(file, clock=lambda: 2000.0)
    try:
        held.store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        held.store._db.execute("PRAGMA shrink_memory")
        every_second_page(file)
        held.answered(seen(7, at=2000.0))
        held.flush()
        assert held.dropped == 0
        assert held.frame(nearest(held, 7)[0].id) is not None
        assert "is damaged" in caplog.text
        assert len(nearest(held, 7, count=500)) == held.store.frames
    finally:
        held.close()


def test_a_damaged_copy_goes_with_what_is_deleted_and_with_age(file):
    one_page_in_the_middle(file)
    held = Archive(file, max_age_s=1e10)
    assert held.delete(Filter(ids=(1,))) == 1
    held.close()
    assert not list(file.parent.glob("*.damaged-*"))
    one_page_in_the_middle(file)
    held = Archive(file, max_age_s=1e10, clock=lambda: 2e10)  # centuries on
    held.flush()
    held.close()
    assert not list(file.parent.glob("*.damaged-*"))


def test_another_program_s_database_is_left_alone(tmp_path):
    for number, words in enumerate(("PRAGMA user_version=7", "PRAGMA user_version=1")):
        path = tmp_path / f"other-{number}.db"
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE frames (mine TEXT)")
        other.execute(words)
        other.close()
        before = path.read_bytes()
        with pytest.raises(BadConfiguration, match="name another --store"):
            FrameStore(path)
        assert path.read_bytes() == before


def test_what_a_full_disk_does_not_take_is_counted_frame_by_frame(tmp_path, caplog):
    with mounted_disk(tmp_path / "disk", "256k") as disk:
        held = Archive(disk / "frames.db", clock=lambda: 1000.0)
        for seed in range(400):
            held.answered(seen(seed, packet=b"TW" + bytes(2000)))
            if seed % 7 == 0:
                held.flush()
        held.flush()
        assert held.dropped > 100
        assert held.store.frames + held.dropped == 400
        assert held.store._db.execute("SELECT count(*) FROM frames").fetchone()[0] == held.store.frames
        assert caplog.text.count("the disk is full: free some space") == 1
        assert "rollback" not in caplog.text
        held.close()
        _fill(disk)
        with pytest.raises(StoreFailed, match="disk is full"):
            FrameStore(disk / "second.db")


def _fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def test_one_frame_that_cannot_be_kept_does_not_cost_the_others(tmp_path, caplog):
    held = Archive(tmp_path / "frames.db", clock=lambda: 1000.0)
    for seed in range(9):
        held.answered(seen(seed, device="cam" if seed != 4 else None))  # NOT NULL
    held.flush()
    assert (held.store.frames, held.dropped) == (8, 1)
    assert caplog.text.count("a frame could not be kept") == 1
    held.close()


def test_a_server_starts_on_a_damaged_store_and_counts_what_a_read_only_disk_costs(serve, make_packet, tmp_path):
    from cloud.watch.options import WatchOptions

    path = tmp_path / "frames.db"
    no_database(path)
    served = serve(watch=WatchOptions(store=path))
    served.stub.Classify(classify(make_packet()), timeout=60)

    def info():
        return served.search.GetStoreInfo(search_pb2.GetStoreInfoRequest(), timeout=60)

    assert (info().frames, info().dropped) == (1, 0)
    store = served.watch.searcher.archive.store
    store._db.execute("PRAGMA query_only=ON")
    for _ in range(3):
        served.stub.Classify(classify(make_packet()), timeout=60)
    until(lambda: info().dropped == 3)  # the count can be asked for while the disk takes nothing
    assert info().frames == 1
