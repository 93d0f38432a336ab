"""The registry of a study: experiments in the order in which they run, and the report's sections in page order.

A new experiment is a module in `benchmarks.study` that measures, one in `benchmarks.report` that shows, and a line in
each table here. An experiment measures the points that OUT/NAME lacks. A section is made from those files alone, and is
left out if there are none. Both are named as "module:function" and imported when they are used.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.study.study import Study


@dataclass(frozen=True)
class Experiment:
    """name: its folder in OUT, and what --only takes. place: "module:function" that takes a `Study`; see `run`."""

    name: str
    about: str
    place: str

    def run(self, study: Study) -> tuple[int, int]:
        """Measures the missing points; returns how many there are now, and how many were measured."""
        return pkgutil.resolve_name(self.place)(study)


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("examples", "photographs as the cloud sees them", "benchmarks.study.examples:run_examples"),
        Experiment(
            "rate-accuracy", "accuracy against bytes, families and peers", "benchmarks.study.accuracy:run_rate_accuracy"
        ),
        Experiment(
            "domains", "the same on scenes, textures and --domain folders", "benchmarks.study.accuracy:run_domains"
        ),
        Experiment(
            "linear-probe",
            "logistic regression on CLIP's vectors, of originals and decoded",
            "benchmarks.study.linear_probe:run_linear_probe",
        ),
        Experiment(
            "retrieval", "captions and images, originals against decoded", "benchmarks.study.retrieval:run_retrieval"
        ),
        Experiment("tricks", "what the cloud could do to a decoded picture", "benchmarks.study.tricks:run_tricks"),
        Experiment("blip", "BLIP image-text matching, where --blip gives weights", "benchmarks.study.blip:run_blip"),
        Experiment("latency", "image to answer over emulated links", "benchmarks.study.timing:study_latency"),
        Experiment(
            "throughput", "the saturated service against the bare model", "benchmarks.study.timing:study_throughput"
        ),
        Experiment(
            "energy",
            "joules or CPU-seconds an image, on the edge and in the cloud",
            "benchmarks.study.timing:study_energy",
        ),
    )
}

DERIVED = ("judges", "critical-rate", "models", "architecture", "predictors", "hierarchy", "prompts", "calibration")
"""Names that --only takes too: sections of the report that need the points of rate-accuracy and nothing else."""

SECTIONS = (
    "benchmarks.report.rate_accuracy:rate_accuracy_section",
    "benchmarks.report.cascade:cascade_section",
    "benchmarks.report.links:links_section",
    "benchmarks.report.examples:examples_section",
    "benchmarks.report.rate_accuracy:savings_section",
    "benchmarks.report.judges:judges_section",
    "benchmarks.report.critical:critical_section",
    "benchmarks.report.critical:models_section",
    "benchmarks.report.architecture:architecture_section",
    "benchmarks.report.predictors:predictors_section",
    "benchmarks.report.hierarchy:hierarchy_section",
    "benchmarks.report.prompts:prompts_section",
    "benchmarks.report.prompts:calibration_section",
    "benchmarks.report.features:probe_section",
    "benchmarks.report.features:retrieval_section",
    "benchmarks.report.tricks:tricks_section",
    "benchmarks.report.tricks:decoders_section",
    "benchmarks.report.features:blip_section",
    "benchmarks.report.timing:throughput_section",
    "benchmarks.report.timing:energy_section",
    "benchmarks.report.rate_accuracy:points_section",
)
"""Of the report, in the order of the page: OUT → `benchmarks.report.section.Section`, or None without points."""
