"""`thinwire-bench runtimes` with the shipped CLIP: a real server, real packets, vectors of both forms."""

from __future__ import annotations

import json

import pytest

from benchmarks.cli import main
from benchmarks.data.photos import wheel_photos
from benchmarks.system import runtimes

pytestmark = pytest.mark.slow


def test_a_server_without_torch_is_measured_and_its_vectors_are_torchs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runtimes, "ANSWERS", 20)
    for photo in wheel_photos():
        (tmp_path / "set" / photo.label).mkdir(parents=True)
        (tmp_path / "set" / photo.label / photo.name).write_bytes(photo.data)
    words = ["runtimes", "--runtimes", "onnx", "--starts", "1", "--rounds", "1", "--seconds", "0.5"]
    assert main([*words, "--data", str(tmp_path / "set")]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    server = told["servers"]["onnx"]
    assert server["answers"] >= 20
    assert server["over_last"] == 1.0
    assert 50 < server["rss_mb"] < 600
    parity = told["parity"]["set"]
    assert parity["images"] == 12
    assert parity["onnx"]["cosine_min"] > 0.9999
    assert parity["onnx"]["text_cosine_min"] > 0.9999
    assert parity["onnx"]["same_top1"] == 1.0
