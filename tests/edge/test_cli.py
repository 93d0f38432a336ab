"""`thinwire-edge` as people and scripts use it: tables, JSON lines, exit codes, and errors that name the fix."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from PIL import Image

from edge.cli import main
from edge.commands.terminal import cells
from tests.edge.canned import after, refuse
from tests.edge.odd_images import bad_images, good_images
from tests.tiny_bundle import make_tiny_bundle, make_tiny_still, photo
from tests.waiting import until
from thinwire import frame_packing
from thinwire.entropy import compiled_module
from thinwire.packet import Packet

ROOT = Path(__file__).resolve().parents[2]
ANSWER_KEYS = {
    "image",
    "ok",
    "predictions",
    "packet_bytes",
    "request_bytes",
    "file_bytes",
    "layers",
    "rate",
    "bundle",
    "model_id",
    "notes",
    "opinions",
    "clip",
    "decode_image_ms",
    "preprocess_ms",
    "encode_ms",
    "code_ms",
    "edge_ms",
    "round_trip_ms",
    "server",
}


@pytest.fixture
def classify(canned, tiny_bundle):
    """Runs `thinwire-edge classify` in this process against the canned server."""

    def run(*args: object, labels: str | None = "cat,dog,car") -> int:
        words = ["classify", *map(str, args), "--server", canned.address, "--bundle", str(tiny_bundle.path)]
        return main([*words, "--labels", labels] if labels is not None else words)

    return run


def process(*args: object, cwd: Path = ROOT, **more) -> dict:
    """Arguments for subprocess: the command line from a checkout."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "edge.cli", *map(str, args)]
    return {"args": command, "env": env, "cwd": cwd, "text": True, "encoding": "utf-8", **more}


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# ---------------------------------------------------------------- classify


def test_a_table_for_people_and_a_summary(classify, tmp_path, capsys):
    good_images(tmp_path)
    assert classify(tmp_path) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for word in ("rotated.jpg", "animated.gif", "cat", "dog", "car", "50.0 %", "round", "bytes"):
        assert word in out
    summary = out.splitlines()[-1]
    assert summary.startswith("10 images, 10 answered; ")
    assert "each" in summary
    assert "x as many" in summary


def test_json_lines_and_nothing_else_on_stdout(classify, canned, tiny_bundle, tmp_path, capsys):
    good, bad = good_images(tmp_path), bad_images(tmp_path)
    (tmp_path / "readme.txt").write_text("no image, and no error")
    assert classify(tmp_path, "--json", "--top-k", 2, "--rate", "low", "--prompt-set", "1") == 1
    out, err = capsys.readouterr()
    records = {Path(each["image"]).name: each for each in json_lines(out)}
    assert set(records) == {path.name for path in good + bad}
    for path in good:
        record = records[path.name]
        assert set(record) == ANSWER_KEYS
        assert record["ok"] is True
        assert [each["label"] for each in record["predictions"]] == ["cat", "dog"]
        assert set(record["predictions"][0]) == {"label", "probability", "similarity"}
        assert record["file_bytes"] == path.stat().st_size
        assert (record["layers"], record["rate"], record["bundle"]) == (1, "low", "tiny")
        assert record["model_id"] == tiny_bundle.model_id.hex()
        assert set(record["server"]) >= {"queue_ms", "decode_ms", "synthesis_ms", "clip_ms", "total_ms", "batch_size"}
    for path in bad:
        assert set(records[path.name]) == {"image", "ok", "error"}
        assert records[path.name]["error"]["reason"] == "BAD_IMAGE"
        assert path.name in err
    assert f"{len(good + bad)} images, {len(good)} answered, {len(bad)} failed" in err.splitlines()[-1]
    assert "readme" not in out + err
    assert {request.prompt_set for request in canned.requests} == {"1"}
    assert sum(len(r.image.packet) for r in canned.requests) == sum(records[p.name]["packet_bytes"] for p in good)


def test_packets_do_not_depend_on_threads(classify, canned, tmp_path):
    good_images(tmp_path)
    for threads in (1, 2):
        assert classify(tmp_path, "--threads", threads, "--in-flight", 1) == 0
    sent = [request.image.packet for request in canned.requests]
    assert sent[: len(sent) // 2] == sent[len(sent) // 2 :]


def test_labels_come_from_line_and_file(classify, canned, tmp_path):
    path = photo(tmp_path)
    listed = tmp_path / "labels.txt"
    listed.write_text("\ufeffcity at night\n\n  dog \nsalt, pepper\n", encoding="utf-8")
    assert classify(path, "--labels-file", listed, labels="cat, dog") == 0
    assert list(canned.requests[0].labels) == ["cat", "dog", "city at night", "salt, pepper"]
    assert classify(path, "--labels-file", listed, labels=None) == 0
    assert list(canned.requests[1].labels) == ["city at night", "dog", "salt, pepper"]


def test_a_named_file_of_any_name_is_tried_and_a_missing_one_told(classify, tmp_path, capsys):
    path = photo(tmp_path).rename(tmp_path / "[bold]photo.dat")
    assert classify(path) == 0
    assert "[bold]photo.dat" in capsys.readouterr().out
    assert classify(path, tmp_path / "gone.jpg") == 1
    out, err = capsys.readouterr()
    assert "gone.jpg: no such file" in err
    assert "2 images, 1 answered, 1 failed" in out


@pytest.mark.parametrize(
    ("args", "labels", "says"),
    [
        ([], None, "--labels"),
        ([], " , ", "--labels"),
        (["--labels-file", "nowhere.txt"], None, "nowhere.txt"),
        (["--rate", "huge"], "a", "low, mid, high"),
        (["--precision", "int8"], "a", "int8"),
        (["--token-file", "nowhere.txt"], "a", "nowhere.txt"),
        (["--tls-ca", "nowhere.pem"], "a", "nowhere.pem"),
    ],
)
def test_wrong_use_exits_2_with_one_line(classify, canned, args, labels, says, tmp_path, capsys):
    assert classify(photo(tmp_path), *args, labels=labels) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.startswith("thinwire-edge: ")
    assert err.count("\n") == 1
    assert canned.requests == []


@pytest.mark.parametrize(
    "args", [["--top-k", "0"], ["--timeout", "0"], ["--timeout", "soon"], ["--threads", "-1"], ["--prompt-set", "8"]]
)
def test_wrong_options_exit_2(classify, args, capsys):
    with pytest.raises(SystemExit) as caught:
        classify("x.jpg", *args)
    assert caught.value.code == 2


def test_no_images_no_bundle_no_address_exit_2(classify, tiny_bundle, tmp_path, capsys):
    assert classify(tmp_path) == 2
    assert f"no image files in {tmp_path}" in capsys.readouterr().err
    path = str(photo(tmp_path))
    assert main(["classify", path, "--labels", "a", "--bundle", "nonesuch"]) == 2
    assert "nonesuch" in capsys.readouterr().err
    assert main(["classify", path, "--labels", "a", "--bundle", str(tiny_bundle.path), "--server", "host"]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


def test_no_server_exits_2_before_any_image(tiny_bundle, dead_address, tmp_path, capsys):
    words = ["--labels", "a,b", "--bundle", str(tiny_bundle.path), "--server", dead_address, "--json"]
    assert main(["classify", str(photo(tmp_path)), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "thinwire-cloud serve" in err


def test_a_server_without_our_bundle_exits_2_and_names_its_own(canned, tmp_path, capsys):
    other = make_tiny_bundle(tmp_path / "other", size=32, name="other")
    words = ["--labels", "a,b", "--bundle", str(other.path), "--server", canned.address]
    assert main(["classify", str(photo(tmp_path)), *words]) == 2
    assert "it holds: tiny (" in capsys.readouterr().err
    assert canned.requests == []


def test_a_server_that_goes_away_ends_the_run_and_keeps_the_answers(classify, canned, tmp_path, capsys):
    for index in range(12):
        photo(tmp_path, f"{index}.jpg", seed=index)
    canned.script.extend([canned.usual] * 3)
    canned.usual = refuse(grpc.StatusCode.UNAVAILABLE, "connection reset")
    assert classify(tmp_path, "--in-flight", 1, "--json") == 2
    out, err = capsys.readouterr()
    assert [each["ok"] for each in json_lines(out)] == [True, True, True, False]
    assert "3 answered, 1 failed, 8 not tried" in err


def test_refused_and_late_images_do_not_stop_the_others(classify, canned, tmp_path, capsys):
    for index in range(4):
        photo(tmp_path, f"{index}.jpg", seed=index)
    canned.script.extend([canned.usual, refuse(grpc.StatusCode.INTERNAL, "poison", "INFERENCE_FAILED"), after(3)])
    assert classify(tmp_path, "--in-flight", 1, "--json", "--timeout", 0.5) == 1
    records = json_lines(capsys.readouterr().out)
    assert [each["ok"] for each in records] == [True, False, False, True]
    assert [each["error"]["reason"] for each in records if not each["ok"]] == ["INFERENCE_FAILED", "DEADLINE"]


def test_a_token_file_reaches_the_server(classify, canned, tmp_path):
    secret = tmp_path / "token"
    secret.write_text("s3cret\n")
    assert classify(photo(tmp_path), "--token-file", secret) == 0
    assert {each["authorization"] for each in canned.metadata} == {"Bearer s3cret"}


def test_the_process_speaks_json_to_pipes_and_draws_no_bar(canned, tiny_bundle, tmp_path):
    good_images(tmp_path)
    odd = photo(tmp_path, "größe 東京.jpg")
    raw = odd.rename(tmp_path / os.fsdecode(b"not-utf8-\xff.jpg"))
    words = ["--labels", "катя,猫", "--server", canned.address, "--bundle", tiny_bundle.path]
    run = subprocess.run(**process("classify", tmp_path, *words, "--json"), capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr
    records = json_lines(run.stdout)
    assert len(records) == 11
    assert records[0]["predictions"][0]["label"] == "катя"
    assert str(raw) in [each["image"] for each in records]
    assert run.stderr.count("\n") == 1  # the summary
    table = subprocess.run(**process("classify", raw, *words), capture_output=True, timeout=60)
    assert table.returncode == 0, table.stderr
    assert "not-utf8-�.jpg" in table.stdout


HEEDS_CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from edge.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_shows_what_was_answered(canned, tiny_bundle, tmp_path):
    for index in range(6):
        photo(tmp_path, f"{index}.jpg", seed=index)
    canned.script.extend([canned.usual] * 2)
    canned.usual = after(30)
    words = ["--labels", "a,b", "--server", canned.address, "--bundle", tiny_bundle.path, "--in-flight", "1"]
    command = process("classify", tmp_path, *words)
    command["args"][1:3] = ["-c", HEEDS_CTRL_C]  # jobs after `&` ignore it
    running = subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(lambda: len(canned.requests) >= 3)  # one at a time: the first two are answered and taken
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert "6 images, 2 answered, 4 not tried" in out


def test_a_reader_that_leaves_early_is_no_accident(canned, tiny_bundle, tmp_path):
    for index in range(40):
        photo(tmp_path, f"{index}.jpg", seed=1)
    words = ["--labels", ",".join(f"label {n}" for n in range(300)), "--top-k", "300", "--json"]
    words += ["--server", canned.address, "--bundle", tiny_bundle.path]
    running = subprocess.Popen(**process("classify", tmp_path, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert json.loads(running.stdout.readline())["ok"]
    running.stdout.close()
    err = running.stderr.read()
    running.stderr.close()
    running.wait(60)
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


# ---------------------------------------------------------------- encode, inspect, decode


def test_encode_writes_what_classify_sends(classify, canned, tiny_bundle, tmp_path, capsys):
    path = photo(tmp_path)
    out = tmp_path / "new" / "photo.twp"
    assert main(["encode", str(path), "-o", str(out), "--bundle", str(tiny_bundle.path), "--rate", "high"]) == 0
    assert f"{out.stat().st_size} bytes (layers " in capsys.readouterr().out
    assert classify(path, "--rate", "high") == 0
    assert out.read_bytes() == canned.requests[0].image.packet


def test_encode_keeps_folders_and_tells_failures(tiny_bundle, tmp_path, capsys):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    photo(tmp_path / "in", "a.jpg")
    photo(tmp_path / "in", "a.png")
    photo(tmp_path / "in" / "deep", "a.jpg")
    (tmp_path / "in" / "empty.jpg").touch()
    words = ["--bundle", str(tiny_bundle.path), "--json"]
    assert main(["encode", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *words]) == 1
    out, err = capsys.readouterr()
    written = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert written == ["a.jpg.twp", "a.png.twp", "deep/a.jpg.twp"]
    records = json_lines(out)
    assert [each["ok"] for each in records] == [True, True, True, False]
    assert all(Path(each["packet"]).stat().st_size == each["packet_bytes"] for each in records[:3])
    assert (
        len(Packet.from_bytes((tmp_path / "out" / "a.jpg.twp").read_bytes()).layers) == len(records[0]["layers"]) == 2
    )
    assert "empty.jpg: the file is empty" in err


def test_encode_refuses_outputs_that_would_overwrite_each_other(tiny_bundle, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    images = [str(photo(tmp_path)), str(photo(tmp_path / "other"))]
    words = ["--bundle", str(tiny_bundle.path)]
    assert main(["encode", *images, "-o", str(tmp_path / "one.twp"), *words]) == 2
    assert "give a folder" in capsys.readouterr().err
    assert main(["encode", *images, "-o", str(tmp_path / "out"), *words]) == 2
    assert "would both become" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["encode", images[0], "-o", str(Path(images[0]) / "x"), *words]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.fixture
def packet(tiny_bundle, tmp_path) -> Path:
    """A packet file of two layers."""
    path = tmp_path / "photo.twp"
    assert main(["encode", str(photo(tmp_path)), "-o", str(path), "--bundle", str(tiny_bundle.path)]) == 0
    return path


def test_inspect_tells_what_is_in_a_packet(packet, tiny_bundle, capsys, monkeypatch):
    capsys.readouterr()
    assert main(["inspect", str(packet)]) == 0
    out = capsys.readouterr().out
    assert "no bundle here has this id" in out
    assert main(["inspect", str(packet), "--bundle", str(tiny_bundle.path)]) == 0
    out = capsys.readouterr().out
    for word in (
        f"bytes     {packet.stat().st_size}",
        tiny_bundle.model_id.hex(),
        "bundle tiny",
        "rate      mid",
        "1-2",
    ):
        assert word in out
    monkeypatch.setattr("edge.commands.packet_files.shipped_bundles", lambda: {"tiny": tiny_bundle.path})
    assert main(["inspect", str(packet), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["bundle"], facts["rate"], facts["version"]) == ("tiny", "mid", 1)
    assert facts["packet_bytes"] == packet.stat().st_size == facts["overhead_bytes"] + sum(facts["layers"])


@pytest.mark.skipif(not hasattr(compiled_module(), "StillPacker"), reason="no compiled coder, which packs stills")
def test_inspect_unpacks_a_still(tmp_path, capsys, monkeypatch):
    still = make_tiny_still(tmp_path / "still", packed=True)
    words = ["--bundle", str(still.path)]
    assert main(["encode", str(photo(tmp_path)), "-o", str(tmp_path / "p.twp"), "--rate", "high", *words]) == 0
    assert main(["inspect", str(still.path)]) == 0
    assert re.search(r"symbols\.bin +[\d,]+ bytes", capsys.readouterr().out)
    assert main(["inspect", str(tmp_path / "p.twp"), "--json", *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rate"], facts["frame_bytes"] > facts["layers"][0]) == ("high", True)
    monkeypatch.setattr(frame_packing, "compiled_module", lambda: None)
    assert main(["inspect", str(tmp_path / "p.twp"), "--json", *words]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["reason"] == "CANNOT_DECODE"
    assert "install thinwire's wheel" in err


def test_inspect_tells_damage_from_wrong_use(packet, tiny_bundle, tmp_path, capsys):
    data = bytearray(packet.read_bytes())
    data[-6] ^= 1
    (tmp_path / "bad.twp").write_bytes(data)
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "bad.twp"), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["reason"] == "BAD_PACKET"
    assert "bad.twp: " in err
    assert main(["inspect", str(photo(tmp_path))]) == 1
    assert "not a thinwire packet" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 1
    assert "card.json" in capsys.readouterr().err
    assert main(["inspect", "nonesuch"]) == 2
    assert "'nonesuch' is not a file" in capsys.readouterr().err


def test_inspect_reads_a_bundle(tiny_bundle, capsys):
    assert main(["inspect", str(tiny_bundle.path)]) == 0
    out = capsys.readouterr().out
    for word in (tiny_bundle.model_id.hex(), "64x64 pixels", "6x4x4", "checkerboard", "encoder.onnx", "low = 1 layer,"):
        assert word in out
    assert main(["inspect", str(tiny_bundle.path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rates"] == {"low": 1, "mid": 2, "high": 3}
    assert facts["files"]["encoder.onnx"]["present"] is True


@pytest.mark.slow
def test_decode_makes_pictures_in_a_process_of_its_own(tiny_bundle_with_decoder, tmp_path, capfd, monkeypatch):
    bundle = tiny_bundle_with_decoder
    packets = tmp_path / "packets"
    images = [photo(tmp_path, f"{index}.jpg", seed=index) for index in range(2)]
    assert main(["encode", *map(str, images), "-o", str(packets), "--bundle", str(bundle.path)]) == 0
    (packets / "bad.twp").write_bytes(b"TW")
    (tmp_path / "cloud").mkdir()  # a folder of the user's that has the name of our package
    monkeypatch.chdir(tmp_path)
    files = sorted(map(str, packets.iterdir()))
    assert main(["decode", *files, "-o", str(tmp_path / "back"), "--bundle", str(bundle.path)]) == 1
    out, err = capfd.readouterr()
    assert out.count("64x64 pixels") == 2
    assert "bad.twp: " in err
    for name in ("0.jpg.png", "1.jpg.png"):
        with Image.open(tmp_path / "back" / name) as picture:
            assert (picture.size, picture.mode) == ((64, 64), "RGB")


def test_decode_without_the_cloud_names_the_extra(packet, tmp_path, capsys, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))
    assert main(["decode", str(packet), "-o", str(tmp_path / "x.png")]) == 2
    assert "thinwire[cloud]" in capsys.readouterr().err


# ---------------------------------------------------------------- small and quick


@pytest.mark.parametrize("command", [[], ["classify"], ["encode"], ["decode"], ["inspect"]])
def test_help_teaches_with_examples(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "examples:\n  thinwire-edge " in out
    if command:
        assert "exit code: 0" in out


def test_a_terminal_gets_a_bar_and_short_names(canned, tiny_bundle, tmp_path):
    """Under a pseudo-terminal of 80 columns, as a person would see it."""
    import pty
    import struct
    import termios
    from fcntl import ioctl

    folder = tmp_path / ("very-" * 20 + "long")
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "東京.jpg"):
        photo(folder, name)
    (folder / "bad\x1b[2J.jpg").touch()
    words = ["--labels", "cat,猫", "--server", canned.address, "--bundle", tiny_bundle.path, "--top-k", 2]
    mine, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = process("classify", folder, *words, stdin=theirs, stdout=theirs, stderr=theirs)
    command["env"].pop("COLUMNS", None)
    running = subprocess.Popen(**command)
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(mine, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(mine)
    assert running.wait(60) == 1
    text = seen.decode()
    assert "classifying " in text
    assert "/4" in text
    assert "\x1b[2J" not in text
    assert "bad�[2J.jpg: the file is empty" in text
    rows = [line for line in text.splitlines() if "g/a.jpg" in line or "東京.jpg" in line or "猫" in line]
    assert len(rows) == 5
    assert all(cells(line) <= 80 for line in rows)
    assert all(line.startswith("…") for line in rows if ".jpg" in line)


def test_help_loads_nothing_heavy_and_a_run_never_loads_torch(canned, tiny_bundle, tmp_path):
    code = (
        "import sys, edge, edge.cli as c\n"
        "try: c.main(['classify', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'grpc', 'onnxruntime', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert c.main(sys.argv[1:]) == 0\n"
        "from edge import AsyncClient, Client, Encoder\n"
        "rooms = {'rich', 'torch', 'torchvision', 'open_clip', 'onnx', 'cloud', 'synthesis', 'export', 'benchmarks'}\n"
        "assert not rooms & set(sys.modules), rooms & set(sys.modules)\n"
        "assert {'grpc', 'onnxruntime'} <= set(sys.modules)\n"
    )
    words = ["--labels", "a,b", "--server", canned.address, "--bundle", str(tiny_bundle.path)]
    command = process("classify", photo(tmp_path), *words)
    command["args"][1:3] = ["-c", code]
    run = subprocess.run(**command, capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr
