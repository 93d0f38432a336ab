"""What `thinwire-edge run` and `doctor` promise for the field, each against the real cloud."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import time
import types

import pytest

from tests.tiny_bundle import make_tiny_bundle, photo

pytest.importorskip("torch")

from cloud.front.access import Security
from cloud.front.server import background_server
from edge.cli import main
from edge.errors import SpoolDiskFull
from edge.field.spool import Spool
from tests.cloud.tiny_engine import calibrated_engine
from tests.edge.certificates import self_signed
from tests.relay import Relay
from tests.tiny_disk import mounted_disk

DAY_S = 86400.0
PHOTOS = 6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", with_decoder=True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory, bundle):
    with calibrated_engine(tmp_path_factory.mktemp("field"), bundle) as engine:
        yield engine


@pytest.fixture
def lasting(engine):
    """The engine, which outlives the servers of one test."""
    engine.close = lambda *_: True
    yield engine
    engine.__dict__.pop("close", None)


@pytest.fixture
def address(lasting):
    with background_server(lasting) as address:
        yield address


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(PHOTOS):
        photo(folder, f"{number}.jpg", seed=number)
    return folder


@pytest.fixture
def run(bundle, photos, tmp_path, capsys):
    """`thinwire-edge run` → (exit code, result lines so far, summary, stderr)."""

    def run(address: str, *more: object, spool=tmp_path / "spool.db"):
        out = tmp_path / "out.jsonl"
        words = ["run", photos, "--labels", "cat,dog", "--server", address, "--bundle", bundle.path, "--spool", spool]
        code = main([*map(str, words), "--out", str(out), "--summary", *map(str, more)])
        said = capsys.readouterr()
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return code, lines, json.loads(said.out.splitlines()[-1]) if said.out else {}, said.err

    return run


def all_answered(lines) -> bool:
    return len(lines) == len({line["key"] for line in lines}) == PHOTOS and all(line["ok"] for line in lines)


# ---------------------------------------------------------------- disks


@pytest.fixture
def tiny_disk(tmp_path):
    with mounted_disk(tmp_path / "disk", "1m") as folder:
        yield folder


def test_a_full_disk_holds_files_back_until_there_is_room(address, run, tiny_disk, monkeypatch):
    """It fills up while the third photograph is taken, and is freed when that one was turned away."""
    ballast, tries, turned_away = tiny_disk / "ballast", [], []
    accept = Spool.accept

    def accepting(spool, *args):
        tries.append(args[0])
        if len(tries) == 3:
            with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        try:
            return accept(spool, *args)
        except SpoolDiskFull as error:
            turned_away.append(error)
            ballast.unlink()
            raise

    monkeypatch.setattr(Spool, "accept", accepting)
    code, lines, facts, err = run(address, spool=tiny_disk / "s.db")
    assert code == 0, err
    assert len(turned_away) == 1
    assert str(turned_away[0]) in err
    assert all_answered(lines)
    assert facts["refused"] == 0


def test_a_read_only_disk_is_told_before_any_frame(address, run, tiny_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    code, lines, facts, err = run(address, spool=tiny_disk / "s.db")
    assert (code, lines, facts) == (2, [], {})
    assert "--spool" in err


def test_a_corrupt_spool_is_set_aside_and_the_run_goes_on(address, run, tmp_path):
    (tmp_path / "spool.db").write_bytes(b"not a database\n" * 1000)
    code, lines, _, err = run(address)
    assert (code, all_answered(lines)) == (0, True)
    assert "is damaged" in err
    assert list(tmp_path.glob("spool.db.damaged-*"))


# ---------------------------------------------------------------- clocks


@pytest.mark.parametrize("step_s", [30 * DAY_S, -30 * DAY_S])
def test_a_clock_that_jumps_expires_nothing(lasting, run, monkeypatch, step_s):
    offset = [0.0]
    monkeypatch.setattr("edge.commands.run.Spool", functools.partial(Spool, clock=lambda: time.time() + offset[0]))
    relay = Relay(lasting)
    relay.swallows = lambda number: number < 2

    def before(number: int) -> None:
        if number == 1:
            offset[0] = step_s

    relay.before = before
    with relay.running() as address:
        code, lines, _, err = run(address)
    assert code == 0, err
    assert all_answered(lines)


class _Clock(types.SimpleNamespace):
    """The time module with another wall clock."""

    def __getattr__(self, name):
        return getattr(time, name)


@pytest.mark.parametrize(("ahead_s", "status"), [(0, "ok"), (3600, "failed"), (-3600, "failed")])
def test_the_doctor_compares_clocks_with_the_real_cloud(address, bundle, monkeypatch, capsys, ahead_s, status):
    monkeypatch.setattr("edge.commands.doctor.time", _Clock(time=lambda: time.time() + ahead_s))
    main(["doctor", "--server", address, "--bundle", str(bundle.path), "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["clock"]["status"] == status
    assert "the server" in checks["clock"]["detail"]
    assert "does not tell" not in checks["clock"]["detail"]
    assert checks["frame"]["status"] == "ok"
    if ahead_s:
        assert ("ahead of" if ahead_s > 0 else "behind") in checks["clock"]["detail"]


# ---------------------------------------------------------------- the other end


def test_a_server_of_another_release_is_told_and_still_used(address, bundle, run, monkeypatch, capsys):
    monkeypatch.setattr("cloud.front.info.__version__", "99.1.0")
    assert main(["doctor", "--server", address, "--bundle", str(bundle.path), "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["version"]["status"] == "warning"
    assert "99.1.0" in checks["version"]["detail"]
    code, lines, _, _ = run(address)
    assert (code, all_answered(lines)) == (0, True)


def test_an_expired_certificate_keeps_frames_until_it_is_renewed(lasting, run, tmp_path):
    old, old_key = self_signed(tmp_path / "old", days=(-9, -1))
    with background_server(lasting, security=Security(certificate=old, key=old_key)) as address:
        code, lines, facts, err = run(address, "--tls-ca", old, "--drain", 8, "--timeout", 4)
    assert (code, lines, facts["waiting"], facts["sent_frames"]) == (1, [], PHOTOS, 0)
    assert "expired" in err
    assert "clock" in err
    new, new_key = self_signed(tmp_path / "new")
    with background_server(lasting, security=Security(certificate=new, key=new_key)) as address:
        code, lines, _, _ = run(address, "--tls-ca", new)
    assert (code, all_answered(lines)) == (0, True)


def test_a_spent_budget_holds_frames_until_there_is_more(address, run):
    code, lines, facts, err = run(address, "--mb-per-day", 0.0005, "--drain", 3)
    assert code == 1
    assert 0 < len(lines) < PHOTOS
    assert 0 < facts["sent_bytes"] <= 500
    assert "byte budget is spent" in err
    code, lines, _, _ = run(address)
    assert (code, all_answered(lines)) == (0, True)


# ---------------------------------------------------------------- progressive answers


@pytest.mark.parametrize(("confidence", "layers"), [(0.4, 1), (0.7, 2), (0.9, 3)])
def test_run_sends_as_many_layers_as_the_confidence_needs(address, run, bundle, confidence, layers):
    code, lines, facts, _ = run(address, "--confidence", confidence, "--rate", "high")
    assert (code, all_answered(lines)) == (0, True)
    assert {line["layers"] for line in lines} == {layers}
    sizes = [line["packet_bytes"] for line in lines]
    assert facts["sent_bytes"] >= sum(sizes)


def test_run_with_confidence_gives_the_answers_of_that_many_layers_sent_at_once(address, run, tmp_path):
    _, steps, _, _ = run(address, "--confidence", 0.7, "--rate", "high")
    (tmp_path / "out.jsonl").unlink()
    _, whole, _, _ = run(address, "--rate", "mid", spool=tmp_path / "other.db")
    by_source = {line["source"]: line for line in whole}
    assert {line["layers"] for line in whole} == {2}
    for line in steps:
        same = by_source[line["source"]]
        assert line["predictions"][0]["label"] == same["predictions"][0]["label"]
        assert line["predictions"][0]["similarity"] == pytest.approx(same["predictions"][0]["similarity"], abs=1e-4)
