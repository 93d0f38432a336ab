"""What a study measures of time: a few points of each family and peer on every link, and the service's saturation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.codecs.grid import PEER
from benchmarks.codecs.peers import PEERS
from benchmarks.data.sets import Dataset, find_datasets, load_dataset
from benchmarks.results.progress import progress_bar
from benchmarks.results.rows import group_points, rows_of
from benchmarks.results.store import read_points
from benchmarks.rig.links import LINKS
from benchmarks.timing import energy_run, latency_run, throughput_run
from benchmarks.timing.energy_run import EnergyRun
from benchmarks.timing.latency_run import LatencyRun, Loop
from benchmarks.timing.routes import Way, family_ways, on_edge_way, peer_ways
from benchmarks.timing.throughput import Rounds
from benchmarks.timing.throughput_run import ThroughputRun

if TYPE_CHECKING:
    from benchmarks.study.study import Study
    from thinwire.bundle import Bundle

NOT_SERVED = ("jxl", "jxl-file")  # the service opens image files by Pillow, which reads no JPEG XL


@dataclass(frozen=True)
class TimingPlan:
    """images: timed at each point; per_codec: points of each family and peer; open_links: where images also come as a
    Poisson process, `arrivals_per_s` of them."""

    images: int
    per_codec: int
    links: tuple[str, ...] = tuple(LINKS)
    open_links: tuple[str, ...] = ("lte-m",)
    arrivals_per_s: float = 2.0
    throughput: Rounds = field(default_factory=Rounds)


PLANS = {
    "quick": TimingPlan(8, 2, throughput=Rounds(2, 3.0)),
    "full": TimingPlan(100, 5, open_links=("lte", "3g", "lte-m"), arrivals_per_s=1.0, throughput=Rounds(7, 8.0)),
}
"""By a study's preset. An image costs the sum of its latencies over the links, about 3.5 s, 2.8 s of which are NB-IoT
and the satellite: quick takes about 80 s for each family and peer, full about an hour."""


def study_latency(study: Study, plan: TimingPlan | None = None) -> tuple[int, int]:
    """Experiment `latency` of a study: (points there are, points measured). The first CLIP and data set stand for all.

    Peers are timed at points of the rate-accuracy hull, spread from few bytes to many; without such points in the study
    they are left out, since the accuracy of their answers is not known.
    """
    plan = plan or PLANS[study.preset.name]
    clip, data = study.clips[0], _sample(study, plan.images)
    ways = _ways(study, data, plan)
    with progress_bar(f"latency, {data.name}") as progress:
        run = LatencyRun(data, clip, "7", study.seed, study.store(latency_run.NAME), progress=progress)
        cases = [(LINKS[name], Loop()) for name in plan.links]
        cases += [(LINKS[name], Loop(plan.arrivals_per_s)) for name in plan.open_links]
        rows = run.run(ways, cases)
    return len(rows), run.measured


def study_throughput(study: Study, plan: TimingPlan | None = None) -> tuple[int, int]:
    """Experiment `throughput` of a study: each family at its middle rate."""
    plan = plan or PLANS[study.preset.name]
    clip, data = study.clips[0], _sample(study, max(plan.images, 32))
    ways = [way for bundle in study.families_of(clip) for way in _spread(family_ways(bundle, "all"), 1)]
    with progress_bar("throughput, rounds") as progress:
        store = study.store(throughput_run.NAME)
        run = ThroughputRun(data, clip, "7", study.seed, store, plan.throughput, progress=progress)
        return len(run.run(ways)), run.measured


def study_energy(study: Study, plan: TimingPlan | None = None) -> tuple[int, int]:
    """Experiment `energy` of a study: the same operating points as `latency`, joules or CPU-seconds an image."""
    plan = plan or PLANS[study.preset.name]
    data = _sample(study, plan.images)
    with progress_bar(f"energy, {data.name}") as progress:
        store = study.store(energy_run.NAME)
        run = EnergyRun(data, study.clips[0], "7", study.seed, store, progress=progress)
        return len(run.run(_ways(study, data, plan))), run.measured


def _ways(study: Study, data: Dataset, plan: TimingPlan) -> list[Way]:
    """Some rates of each family, some settings of each peer, and all on the edge where a bundle holds CLIP's tower."""
    bundles = study.families_of(study.clips[0])
    ways = [way for bundle in bundles for way in _spread(family_ways(bundle, "all"), plan.per_codec)]
    if bundles:
        ways += _peer_ways(study, data.name, bundles[0], plan.per_codec)
    return ways + [on_edge_way(bundle) for bundle in bundles if bundle.card.wire["family"] == "embedding"]


def _sample(study: Study, count: int) -> Dataset:
    first = study.datasets()[0]
    return load_dataset(find_datasets(study.data_dir)[first.name], min(count, len(first.items)), study.seed)


def _peer_ways(study: Study, data: str, host: Bundle, count: int) -> list[Way]:
    groups = group_points(read_points(study.out, "rate-accuracy"))
    group = next((group for group in groups if group.reference["data"]["name"] == data), None)
    if group is None:
        return []
    hull = [row for row in rows_of(group, group.prompt_sets[0]) if row["kind"] == PEER and row["hull"]]
    ways = []
    for peer in study.peers:
        own = sorted((row for row in hull if row["codec"] == peer.name), key=lambda row: row["bytes_mean"])
        if peer.name not in NOT_SERVED and own:
            ways += peer_ways(peer, host, [_setting(row, host) for row in _spread(own, count)])
    return ways


def _setting(row: dict[str, Any], host: Bundle) -> tuple[int, float]:
    """(side of a 224-pixel view, value of the dial) of a rate-accuracy row."""
    parameters = row["parameters"]
    return round(224 * parameters["side"] / min(host.input_size)), parameters[PEERS[row["codec"]].dial]


def _spread(points: Sequence, count: int) -> list:
    """`count` of `points`, ends included, as evenly as they go; the middle one for a count of 1.

    >>> _spread("abcdefg", 3), _spread("abc", 1), _spread("ab", 5)
    (['a', 'd', 'g'], ['b'], ['a', 'b'])
    """
    if len(points) <= count:
        return list(points)
    if count == 1:
        return [points[(len(points) - 1) // 2]]
    return [points[round(place * (len(points) - 1) / (count - 1))] for place in range(count)]
