"""Metrics on predictions made by hand, the evaluation loop on a stand-in edge, and the service wrapper."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy.evaluate import Record, evaluate, summarise
from benchmarks.codecs.peers import png_bytes
from benchmarks.data.sets import load_dataset
from benchmarks.rig.server_process import ServiceFailed, serving
from benchmarks.stats.paired import hits, mean_per_class_recall, relative_top1
from edge.errors import Refused, ServerUnreachable
from edge.line.client import Prediction, Result, ServerTiming
from tests.waiting import until
from thinwire.errors import RateError
from thinwire.imaging import canonical_view

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ["cat", "cat", "cat", "dog"]
RANKED = [("cat", "dog", "cow"), ("dog", "cat", "cow"), (), ("dog", "cow", "cat")]


def record(ranked, sent, codec="conv", rate="low") -> Record:
    return Record(codec, rate, list(ranked), list(sent), [1.0] * len(sent), [2.0] * len(sent))


def test_hits_count_missing_answers_as_wrong():
    assert hits(RANKED, TARGETS, 1).tolist() == [True, False, False, True]
    assert hits(RANKED, TARGETS, 2).tolist() == [True, True, False, True]
    with pytest.raises(ValueError, match="4 predictions for 3"):
        hits(RANKED, TARGETS[:3], 1)


def test_mean_per_class_recall_weighs_classes_alike():
    assert mean_per_class_recall(hits(RANKED, TARGETS, 1), TARGETS) == pytest.approx((1 / 3 + 1) / 2)
    assert mean_per_class_recall(np.zeros(0, bool), []) is None


def test_relative_top1_and_its_interval():
    rng = np.random.default_rng(0)
    reference = rng.random(1000) < 0.8
    correct = reference & (rng.random(1000) < 0.9)
    ratio, (low, high) = relative_top1(correct, reference, seed=1)
    assert ratio == pytest.approx(correct.sum() / reference.sum())
    assert low < ratio < high
    # every miss of the reference is shared, so only the 10% lost of about 800 scatter: sd = sqrt(.9 * .1 / 800)
    assert high - low == pytest.approx(2 * 1.96 * (0.09 / 800) ** 0.5, rel=0.2)
    assert relative_top1(correct, reference, seed=1) == (ratio, (low, high))


def test_relative_top1_edges():
    some, none = np.array([True, False, True]), np.zeros(3, bool)
    assert relative_top1(some, some) == (1.0, (1.0, 1.0))
    assert relative_top1(none, some) == (0.0, (0.0, 0.0))
    assert relative_top1(some, none) == (None, None)
    with pytest.raises(ValueError, match="same images"):
        relative_top1(some, none[:2])


def test_summary_keeps_failures_apart():
    reference = record([(label,) for label in TARGETS], [9e4] * 4, "uncompressed", None)
    got = record(RANKED, [100, 200, float("nan"), 300])
    got.messages = ["0002.png: refused"]
    row = summarise(got, TARGETS, reference, 224 * 224)
    assert (row["codec"], row["rate"], row["n"], row["failed"]) == ("conv", "low", 4, 1)
    assert row["bytes_mean"] == 200
    assert row["bits_per_pixel"] == pytest.approx(1600 / 50176, abs=1e-5)
    assert (row["top1"], row["top5"], row["top1_relative"]) == (0.5, 0.75, 0.5)
    assert row["failure_messages"] == ["0002.png: refused"]
    assert row["psnr_db"] is None
    json.dumps(row, allow_nan=False)


def test_summary_when_everything_failed():
    nothing = record([()] * 4, [float("nan")] * 4)
    row = summarise(nothing, TARGETS, nothing, 50176)
    assert (row["top1"], row["failed"], row["bytes_mean"], row["top1_relative"]) == (0.0, 4, None, None)
    json.dumps(row, allow_nan=False)


@dataclass
class StandInClient:
    """Tells dark from bright: by the PNG always, by a packet of rate "low" never. Fails as `error` says."""

    error: Exception | None = None
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bundle = SimpleNamespace(
            name="conv", input_size=(16, 16), view=lambda image: canonical_view(image, 16, 16)
        )
        self.encoder = SimpleNamespace(layers_of=self._layers_of)

    def _layers_of(self, rate: str) -> int:
        if rate not in ("low", "high"):
            raise RateError(rate)
        return 1

    def _result(self, best: str, labels, size: int) -> Result:
        ranked = (best, *(label for label in labels if label != best))
        timing = ServerTiming(0, 0, 0, 0, 0, 1, 1)
        return Result(
            tuple(Prediction(label, 0.5, 0.2) for label in ranked), size, 1, 0, 0, 3, 2, 5, timing, "tiny", size
        )

    def classify_file(self, data, labels, top_k=5, prompt_set="7"):
        import io

        self.calls.append("file")
        bright = np.asarray(Image.open(io.BytesIO(data))).mean() > 127
        return self._result("bright" if bright else "dark", labels, len(data))

    def classify(self, image, labels, top_k=5, prompt_set="7", rate=None):
        self.calls.append(rate)
        if self.error is not None and self.calls.count(rate) == 3:  # the warm-up is the first
            raise self.error
        bright = image.mean() > 127
        return self._result("bright" if bright or rate == "low" else "dark", labels, 40 if rate == "low" else 80)


@pytest.fixture
def data(tmp_path: Path):
    for label, value in (("dark", 10), ("bright", 240)):
        (tmp_path / label).mkdir()
        for number in range(3):
            (tmp_path / label / f"{number}.png").write_bytes(png_bytes(np.full((20, 20, 3), value + number, np.uint8)))
    return tmp_path


def test_every_image_goes_every_way(data: Path):
    seen = []
    client = StandInClient()
    rows = evaluate(client, load_dataset(data), ["low", "high"], progress=lambda: seen.append(1))
    assert len(seen) == 6
    assert [client.calls.count(way) for way in ("file", "low", "high")] == [7, 7, 7]
    assert [(row["codec"], row["rate"]) for row in rows] == [("uncompressed", None), ("conv", "low"), ("conv", "high")]
    assert [row["top1"] for row in rows] == [1.0, 0.5, 1.0]
    assert [row["bytes_mean"] for row in rows[1:]] == [40, 80]
    assert rows[1]["encode_ms_p50"] == 5
    assert rows[0]["top1_relative_ci95"] == [1.0, 1.0]


def test_failures_are_counted(data: Path):
    (data / "dark" / "0.png").write_bytes(b"")
    client = StandInClient(Refused("the queue is full", "QUEUE_FULL"))
    rows = evaluate(client, load_dataset(data), ["low"])
    assert [row["failed"] for row in rows] == [1, 2]
    assert any("0 bytes" in message for message in rows[0]["failure_messages"])
    assert any("queue is full" in message for message in rows[1]["failure_messages"])
    assert rows[0]["top1"] == pytest.approx(5 / 6, abs=1e-5)


def test_what_makes_all_images_fail_is_raised(data: Path):
    with pytest.raises(RateError):
        evaluate(StandInClient(), load_dataset(data), ["enormous"])
    with pytest.raises(ServerUnreachable):
        evaluate(StandInClient(ServerUnreachable("gone")), load_dataset(data), ["low"])


STOPS_ON_TERM = """
import signal, sys, pathlib
def stop(*_):
    pathlib.Path(sys.argv[1]).write_text("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("loading", file=sys.stderr)
print("listening on 127.0.0.1:4711", file=sys.stderr, flush=True)
for _ in range(20000):
    print("x" * 50, file=sys.stderr)
pathlib.Path(sys.argv[1]).write_text("drained")
signal.pause()
"""


def test_service_address_draining_and_stop(tmp_path: Path):
    mark = tmp_path / "mark"
    with serving([sys.executable, "-c", STOPS_ON_TERM, str(mark)], timeout_s=30) as address:
        assert address == "127.0.0.1:4711"
        until(lambda: mark.exists() and mark.read_text() == "drained")
    assert mark.read_text() == "stopped"


def test_service_errors_carry_stderr():
    with (
        pytest.raises(ServiceFailed, match=r"(?s)code 3.*no such bundle"),
        serving(
            [sys.executable, "-c", "import sys; print('no such bundle', file=sys.stderr); sys.exit(3)"], timeout_s=30
        ),
    ):
        pass
    with (
        pytest.raises(ServiceFailed, match="not ready after"),
        serving([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.5),
    ):
        pass


KILLED = """
import os, signal, sys
from benchmarks.rig.server_process import serving
child = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w'), flush=True);" \\
    "print('listening on x', file=sys.stderr, flush=True); time.sleep(300)"
with serving([sys.executable, "-c", child, sys.argv[1]], timeout_s=60):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_benchmark_takes_its_server_along(tmp_path):
    mark = tmp_path / "pid"
    done = subprocess.run([sys.executable, "-c", KILLED, str(mark)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    server = Path("/proc") / mark.read_text().strip()
    until(lambda: not server.exists(), 30, "the server ends with the benchmark that started it")
