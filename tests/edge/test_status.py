"""doctor, bench and bundle updates, as an operator uses them."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import tarfile
import time
from pathlib import Path

import grpc
import pytest

from edge.cli import main
from edge.commands.bundle_store import current
from tests.edge.canned import Canned, refuse, serve
from tests.edge.certificates import self_signed
from tests.tiny_bundle import make_tiny_bundle, make_tiny_still, photo
from thinwire import __version__, frame_packing
from thinwire.bundle import load_bundle
from thinwire.entropy import compiled_module

# ---------------------------------------------------------------- doctor


@pytest.fixture
def doctor(canned, tiny_bundle, capsys):
    """Runs the doctor and gives its exit code and its checks by name."""

    def run(*args: object, server: str = canned.address) -> tuple[int, dict[str, dict]]:
        words = ["doctor", "--server", server, "--bundle", str(tiny_bundle.path), "--timeout", "20", "--json"]
        code = main([*words, *map(str, args)])
        report = json.loads(capsys.readouterr().out)
        assert report["healthy"] == (code == 0)
        return code, {check["name"]: check for check in report["checks"]}

    return run


def test_a_healthy_line(doctor, canned, tmp_path, tiny_bundle, capsys):
    canned.version, canned.time = __version__, time.time()
    code, checks = doctor("--spool", tmp_path / "new" / "s.db")
    assert code == 0
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert list(checks) == [
        "encoder", "disk", "dns", "tcp", "tls", "server", "version", "bundle", "clock", "frame",
    ]  # fmt: skip
    assert "bytes, answered in" in checks["frame"]["detail"]
    assert len(canned.requests) == 1
    assert main(["doctor", "--server", canned.address, "--bundle", str(tiny_bundle.path)]) == 0
    assert "ok      tcp" in capsys.readouterr().out


def test_doctor_bench_and_inspect_know_stills(doctor, canned, tmp_path, capsys):
    still = make_tiny_still(tmp_path / "still")
    canned.bundles, canned.version, canned.time = [still], __version__, time.time()
    code, checks = doctor("--bundle", still.path, "--spool", tmp_path / "s.db")
    assert code == 0
    assert "Pillow's AV1" in checks["encoder"]["detail"]
    assert main(["bench", "--bundle", str(still.path), "--rate", "low", "--frames", "3"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["encoder"], list(report["packet_bytes"])) == ("Pillow's AV1", ["low"])
    packet = tmp_path / "photo.twp"
    words = ["encode", str(photo(tmp_path)), "-o", str(packet), "--rate", "high", "--bundle", str(still.path)]
    assert main(words) == 0
    assert main(["inspect", str(packet), "--bundle", str(still.path)]) == 0
    assert main(["inspect", str(still.path)]) == 0
    said = capsys.readouterr().out
    assert "rate      high (of low = rung 1, high = rung 2)" in said
    assert "AV1, 64x64 pixels, quality 30" in said


@pytest.mark.skipif(not hasattr(compiled_module(), "StillPacker"), reason="no compiled coder, which packs stills")
def test_the_doctor_tells_that_stills_are_not_packed_here(canned, tmp_path, capsys, monkeypatch):
    still = make_tiny_still(tmp_path / "still", packed=True)
    words = ["doctor", "--server", canned.address, "--bundle", str(still.path), "--timeout", "20", "--json"]
    for found, status in ((compiled_module, "ok"), (lambda: None, "warning")):
        monkeypatch.setattr(frame_packing, "compiled_module", found)
        main(words)
        checks = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
        assert checks["encoder"]["status"] == status, checks["encoder"]
    assert "larger than need be" in checks["encoder"]["detail"]
    assert "wheel" in checks["encoder"]["fix"]


def test_a_still_is_installed_as_an_update(tmp_path):
    still = make_tiny_still(tmp_path / "still")
    assert bundle("install", still.path, "--store", tmp_path / "store") == 0
    assert load_bundle(current(tmp_path / "store" / still.name)).model_id == still.model_id


def test_a_wrong_clock_and_another_release(doctor, canned):
    canned.version, canned.time = "99.0.0", time.time() + 3600
    code, checks = doctor()
    assert code == 1
    assert checks["version"]["status"] == "warning"
    assert "99.0.0" in checks["version"]["detail"]
    assert (checks["clock"]["status"], checks["frame"]["status"]) == ("failed", "ok")
    assert "s behind the server" in checks["clock"]["detail"]
    assert "timedatectl" in checks["clock"]["fix"]


def test_each_failure_names_its_fix_and_skips_what_follows(doctor, canned, dead_address, tmp_path):
    code, checks = doctor(server="no-such-host.invalid:50051")
    assert (code, checks["dns"]["status"], checks["tcp"]["status"]) == (1, "failed", "skipped")
    assert "--server" in checks["dns"]["fix"]
    _, checks = doctor(server=dead_address)
    assert (checks["dns"]["status"], checks["tcp"]["status"], checks["frame"]["status"]) == ("ok", "failed", "skipped")
    assert "thinwire-cloud serve" in checks["tcp"]["fix"]
    _, checks = doctor("--tls")
    assert (checks["tls"]["status"], checks["server"]["status"]) == ("failed", "skipped")
    assert "--tls-ca" in checks["tls"]["fix"]
    with serve(None) as address:
        _, checks = doctor(server=address)
    assert checks["server"]["status"] == "failed"
    assert "no thinwire server of this release" in checks["server"]["detail"]
    other = make_tiny_bundle(tmp_path / "other", size=32, name="other")
    _, checks = doctor("--bundle", other.path)
    assert (checks["bundle"]["status"], checks["frame"]["status"]) == ("failed", "skipped")
    assert f"--bundle {other.path}" in checks["bundle"]["fix"]
    canned.usual = refuse(grpc.StatusCode.UNAUTHENTICATED, "who are you")
    _, checks = doctor()
    assert "--token-file" in checks["frame"]["fix"]
    (other.path / "encoder.onnx").write_bytes(b"x")
    _, checks = doctor("--bundle", other.path)
    assert (checks["encoder"]["status"], checks["bundle"]["status"]) == ("failed", "skipped")
    assert "encoder.onnx" in checks["encoder"]["detail"]


def test_a_silent_port_is_no_server(doctor):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        _, checks = doctor("--timeout", 0.5, server=f"127.0.0.1:{mute.getsockname()[1]}")
    assert (checks["tcp"]["status"], checks["server"]["status"]) == ("ok", "failed")


@pytest.mark.parametrize(
    ("days", "trusted", "status", "says"),
    [
        ((-1, 90), True, "ok", "more days"),
        ((-1, 5), True, "warning", "renew"),
        ((-9, -1), True, "failed", "clock"),
        ((-1, 90), False, "failed", "--tls-ca"),
    ],
)
def test_certificates(doctor, tiny_bundle, tmp_path, days, trusted, status, says):
    pem, key = self_signed(tmp_path, days=days)
    authority = pem if trusted else self_signed(tmp_path / "other")[0]
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), pem.read_bytes())])
    with serve(Canned([tiny_bundle]), credentials) as address:
        _, checks = doctor("--tls-ca", authority, server=address)
    assert checks["tls"]["status"] == status
    assert says in checks["tls"]["detail"] + checks["tls"]["fix"]
    assert checks["frame"]["status"] == ("skipped" if status == "failed" else "ok")


# ---------------------------------------------------------------- bench


def test_bench_tells_what_a_frame_costs(tiny_bundle, tmp_path, capsys):
    words = ["bench", "--bundle", str(tiny_bundle.path), "--frames", "20"]
    assert main([*words, str(photo(tmp_path))]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(report["packet_bytes"]) == ["low", "mid", "high"]
    assert 0 < report["packet_bytes"]["low"] < report["packet_bytes"]["high"]
    assert min(report["encode_ms_p50"], report["decode_image_ms_p50"], report["cpu_s_per_frame"]) > 0
    (tmp_path / "bad.jpg").touch()
    assert main([*words, str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == 10
    assert main(words) == 0


# ---------------------------------------------------------------- bundles


@pytest.fixture
def versions(tmp_path) -> list[Path]:
    """Two bundles of one name that differ."""
    return [make_tiny_bundle(tmp_path / f"v{n}", size=32 * n, name="tiny").path for n in (1, 2)]


def bundle(*args: object) -> int:
    return main(["bundle", *map(str, args)])


def card_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "card.json").read_bytes()).hexdigest()


def test_a_bundle_is_installed_used_and_taken_back(versions, tmp_path, capsys):
    store = tmp_path / "store"
    packed = tmp_path / "v2.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(versions[1], "tiny")
    assert bundle("install", versions[0], "--store", store) == 0
    assert bundle("install", packed, "--store", store, "--card-sha256", card_hash(versions[1])) == 0
    now = store / "tiny" / "current"
    assert load_bundle(now).model_id == load_bundle(versions[1]).model_id
    assert bundle("rollback", "tiny", "--store", store) == 0
    assert load_bundle(now).model_id == load_bundle(versions[0]).model_id
    assert bundle("rollback", "tiny", "--store", store) == 0
    assert load_bundle(now).model_id == load_bundle(versions[1]).model_id
    capsys.readouterr()
    assert bundle("list", "--store", store) == 0
    assert sorted(line.split()[-1] for line in capsys.readouterr().out.splitlines()) == ["current", "previous"]
    assert versions[0].is_dir()


def test_what_is_not_sound_is_refused_and_the_current_stays(versions, tmp_path, capsys):
    store = tmp_path / "store"
    assert bundle("install", versions[0], "--store", store) == 0
    before = current(store / "tiny")
    altered = tmp_path / "altered"
    shutil.copytree(versions[1], altered)
    (altered / "tables.npz").write_bytes(b"x")
    wrong = tmp_path / "wrong.tar"
    with tarfile.open(wrong, "w") as archive:
        for path in versions[1].iterdir():
            archive.add(path, path.name)
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "junk.tar").write_bytes(b"junk" * 100)
    (tmp_path / "empty").mkdir()
    for args, says in (
        ((altered,), "tables.npz"),
        ((versions[1], "--card-sha256", "0" * 64), "do not use it"),
        ((wrong,), "links"),
        ((tmp_path / "junk.tar",), "tar"),
        ((tmp_path / "empty",), "card.json"),
        ((tmp_path / "missing",), "not a bundle"),
        (("https://example.invalid/x.tar",), "--card-sha256"),
        (("http://example.invalid/x.tar", "--card-sha256", "0" * 64), "https"),
    ):
        assert bundle("install", *args, "--store", store) == 2, args
        assert says in capsys.readouterr().err
    assert current(store / "tiny") == before
    assert sorted(path.name for path in store.iterdir()) == ["tiny"]
    assert bundle("rollback", "tiny", "--store", store) == 2
    assert bundle("rollback", "../x", "--store", store) == 2


# ---------------------------------------------------------------- signed bundles


def signing_key(folder: Path, name: str = "signing"):
    """A private key, and the PEM file of its public half."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = folder / f"{name}.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    pem.write_bytes(key.public_key().public_bytes(encoding, form))
    return key, pem


def sign(folder: Path, key) -> None:
    (folder / "card.json.sig").write_bytes(key.sign((folder / "card.json").read_bytes()))


def test_a_signed_bundle_is_installed_and_any_other_refused_and_rollback_still_works(versions, tmp_path, capsys):
    store = tmp_path / "store"
    key, pem = signing_key(tmp_path)
    stranger, _ = signing_key(tmp_path, "stranger")
    sign(versions[0], key)
    assert bundle("install", versions[0], "--store", store, "--public-key", pem) == 0
    first = current(store / "tiny")
    capsys.readouterr()

    def refuses(says: str, *more: object) -> None:
        assert bundle("install", versions[1], "--store", store, "--public-key", pem, *more) == 2
        assert says in capsys.readouterr().err
        assert current(store / "tiny") == first

    refuses("has no card.json.sig")
    refuses("has no card.json.sig", "--card-sha256", card_hash(versions[1]))  # a hash does not stand in for it
    sign(versions[1], stranger)
    refuses("was not made by the key")
    sign(versions[0], key)
    shutil.copy(versions[0] / "card.json.sig", versions[1])  # another card's
    refuses("was not made by the key")
    (versions[1] / "card.json.sig").write_bytes(b"x")
    refuses("not an Ed25519 signature")
    sign(versions[1], key)
    tables = (versions[1] / "tables.npz").read_bytes()
    (versions[1] / "tables.npz").write_bytes(b"x")  # what the signed card does not vouch for
    refuses("tables.npz")
    (versions[1] / "tables.npz").write_bytes(tables)
    assert bundle("install", versions[1], "--store", store, "--public-key", pem) == 0
    assert load_bundle(current(store / "tiny")).model_id == load_bundle(versions[1]).model_id
    assert bundle("rollback", "tiny", "--store", store) == 0
    assert current(store / "tiny") == first


def test_a_key_pinned_in_the_store_is_asked_of_every_bundle(versions, tmp_path, capsys):
    store = tmp_path / "store"
    store.mkdir()
    key, pem = signing_key(tmp_path)
    shutil.copy(pem, store / "trusted.pem")
    assert bundle("install", versions[0], "--store", store) == 2
    assert "card.json.sig" in capsys.readouterr().err
    stranger, theirs = signing_key(tmp_path, "stranger")
    sign(versions[0], stranger)
    assert bundle("install", versions[0], "--store", store, "--public-key", theirs) == 2  # pinned means pinned
    assert "trusted.pem" in capsys.readouterr().err
    sign(versions[0], key)
    assert bundle("install", versions[0], "--store", store) == 0
    (store / "trusted.pem").write_text("no key")
    assert bundle("install", versions[0], "--store", store) == 2
    assert "public key cannot be read" in capsys.readouterr().err


def test_openssl_makes_such_signatures(versions, tmp_path):
    """The commands of docs/edge.md."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command line")

    def openssl(*words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=30)

    secret, pem, card = tmp_path / "signing.pem", tmp_path / "trusted.pem", versions[0] / "card.json"
    openssl("genpkey", "-algorithm", "ed25519", "-out", secret)
    openssl("pkey", "-in", secret, "-pubout", "-out", pem)
    openssl("pkeyutl", "-sign", "-rawin", "-inkey", secret, "-in", card, "-out", f"{card}.sig")
    assert bundle("install", versions[0], "--store", tmp_path / "store", "--public-key", pem) == 0
