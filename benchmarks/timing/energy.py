"""The energy experiment: joules per image from RAPL where the machine shows it, CPU-seconds per image everywhere.

RAPL counts whole CPU packages (Linux, Documentation/power/powercap/powercap.rst): whatever else runs is in it, so an
idle stretch is measured before each point and both figures are given, gross and above idle. CPU-seconds are of this
process alone, all its threads; they are no energy, but they compare ways on one machine.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.timing.routes import EdgeHead, Way
from cloud.engine.engine import Engine
from edge.line.client import Client, Question
from thinwire.errors import ThinwireError
from thinwire.imaging import open_image
from thinwire.labels import resolve_templates
from thinwire.v1 import inference_pb2 as pb

POWERCAP = Path("/sys/class/powercap")
IDLE_S = 2.0
EDGE, CLOUD = "edge", "cloud"


@dataclass(frozen=True)
class Zone:
    """One CPU package's counter of microjoules, which begins again after `range_uj`."""

    path: Path
    range_uj: int

    def read_uj(self) -> int:
        return int((self.path / "energy_uj").read_text())


def rapl_zones(folder: Path = POWERCAP) -> list[Zone]:
    """Package zones (intel-rapl:N, also on AMD) that may be read; empty where there are none, or only root may.

    Sub-zones (core, dram: intel-rapl:N:M) are parts of these or would be counted twice.
    """
    zones = []
    for path in sorted(folder.glob("intel-rapl:*")):
        if path.name.count(":") == 1:
            try:
                zone = Zone(path, int((path / "max_energy_range_uj").read_text()))
                zone.read_uj()
                zones.append(zone)
            except (OSError, ValueError):
                continue
    return zones


class Meter:
    """Reads all zones at once; without zones joules are None."""

    def __init__(self, zones: Sequence[Zone] | None = None) -> None:
        self.zones = rapl_zones() if zones is None else list(zones)
        self._last = [zone.read_uj() for zone in self.zones]

    def joules(self) -> float | None:
        """Since the last call (or the beginning). Call it at least every few minutes: counters begin again."""
        if not self.zones:
            return None
        now = [zone.read_uj() for zone in self.zones]
        spans = [(new - old) % zone.range_uj for zone, new, old in zip(self.zones, now, self._last)]
        self._last = now
        return sum(spans) / 1e6


def per_image(
    work: Callable[[int], object], count: int, tick: Callable[[], object], meter: Meter | None = None
) -> dict[str, Any]:
    """Does `work(index)` for each of `count` images. `work` raises `ThinwireError` for an image that fails."""
    meter = meter or Meter()
    with contextlib.suppress(ThinwireError):  # warm-up; a broken first image is told below
        work(0)
    idle_w = None
    if meter.zones:
        meter.joules()
        time.sleep(IDLE_S)
        idle_w = meter.joules() / IDLE_S
    failures: list[str] = []
    cpu_s, began = time.process_time(), time.perf_counter()
    gross_j = 0.0
    for index in range(count):
        try:
            work(index)
        except ThinwireError as error:
            failures.append(str(error))
        if meter.zones:
            gross_j += meter.joules()
        tick()
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    return {
        "source": "rapl" if meter.zones else "cpu-seconds",
        "zones": [zone.path.name for zone in meter.zones],
        "n": count,
        "failed": len(failures),
        "failure_messages": failures[:5],
        "cpu_s_per_image": round(cpu_s / count, 6),
        "wall_s_per_image": round(wall_s / count, 6),
        "joules_per_image": round(gross_j / count, 6) if meter.zones else None,
        "joules_per_image_above_idle": round((gross_j - idle_w * wall_s) / count, 6) if meter.zones else None,
        "idle_watts": None if idle_w is None else round(idle_w, 3),
    }


def edge_work(
    way: Way, client: Client, head: EdgeHead | None, images: Sequence[bytes], question: Question
) -> Callable[[int], object]:
    """What the device does for image `index`, up to the request that it would send; with `head`, up to the answer."""
    if head is None:
        return lambda index: way.prepare(client, images[index], question)

    def answer(index: int) -> object:
        view = client.bundle.view(open_image(images[index]))
        return head.rank(client.encoder.symbols(view), question.top_k)

    return answer


def cloud_work(engine: Engine, requests: Sequence[pb.ClassifyRequest], question: Question) -> Callable[[int], object]:
    """What the service does for request `index`, transport aside, one request at a time."""
    templates = resolve_templates(question.prompt_set)

    def answer(index: int) -> object:
        image = requests[index].image
        kind = image.WhichOneof("source")
        asked = {"labels": question.labels, "templates": templates, "top_k": question.top_k}
        return engine.submit(**{kind: getattr(image, kind)}, **asked).result()

    return answer
