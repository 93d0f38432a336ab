"""`thinwire-bench study` and `report`: every experiment of a preset, resumable, and the report of its points."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.codecs.selection import FAMILIES_HELP, PEERS_HELP, default_families, parse_families, parse_peers
from benchmarks.judges.panel import JUDGES_HELP
from benchmarks.results.progress import ended_by_sigterm
from benchmarks.study.study import PRESETS, Study, StudyError
from synthesis.memory import keep_freed_memory


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Registers `study` and `report`, which set `document`."""
    study = commands.add_parser(
        "study",
        help="all experiments of a preset, then the report; finished points are never measured again",
        description="Runs every experiment on the data sets in a folder. Each operating point is a file of its own in "
        "OUT, kept as it is finished; run again, only missing points are measured. Ends with one line of JSON that "
        "names the files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    study.add_argument(
        "--preset", default="quick", choices=["quick", "full"], help="how much to measure; see docs/benchmarks.md"
    )
    study.add_argument("--data-dir", required=True, metavar="DIR", help="folder of labelled data sets, or one of them")
    study.add_argument("--out", required=True, metavar="OUT", help="folder of the points and the report")
    study.add_argument("--only", action="append", default=[], metavar="NAME", help="run this experiment (repeatable)")
    study.add_argument("--data", metavar="A,B", help="data sets of DIR to use (default: the preset's)")
    study.add_argument("--families", metavar="A,B", help=FAMILIES_HELP + " (default: all)")
    study.add_argument("--peers", default="all", metavar="A,B", help=PEERS_HELP)
    study.add_argument("--clip", nargs="+", default=["clip-lite"], metavar="CLIP", help="CLIPs that answer")
    study.add_argument("--judge", action="append", default=[], metavar="NAME", help=JUDGES_HELP)
    study.add_argument("--captions", type=Path, metavar="CSV|DIR|TAR", help="caption set of retrieval")
    study.add_argument(
        "--domain", action="append", default=[], type=Path, metavar="DIR", help="labelled set of domains (repeatable)"
    )
    study.add_argument("--blip", metavar="DIR|NAME", help="weights for BLIP image-text matching (default: left out)")
    study.add_argument("--limit", type=int, metavar="N", help="images of each set (default: the preset's)")
    study.add_argument("--seed", type=int, default=0, help="seed of samples and bootstraps")
    study.add_argument(
        "--skip-existing", action=argparse.BooleanOptionalAction, default=True, help="keep points that OUT holds"
    )
    report = commands.add_parser(
        "report", help="write report.html, report.md, results.csv and figures from the points in OUT"
    )
    report.add_argument("out", metavar="OUT", help="folder that a study wrote")
    study.set_defaults(document=_study)
    report.set_defaults(document=_report)


def _leave_a_core_free() -> None:
    """CLIP beside a thread that encodes: with a thread for every core they would wait for each other."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))


def run_study(study: Study, only: Sequence[str] = ()) -> dict[str, object]:
    """Runs the experiments (`only` those named), then writes the report, unless nothing has changed since the last.

    Returns the line that a study ends with.
    """
    from benchmarks.report.page import write_study_report
    from benchmarks.report.stamp import unchanged
    from benchmarks.study.experiments import DERIVED, EXPERIMENTS

    if unknown := [name for name in only if name not in (*EXPERIMENTS, *DERIVED)]:
        known = ", ".join([*EXPERIMENTS, *DERIVED])
        raise StudyError(f"--only {', '.join(unknown)}: no such experiment; there are {known}")
    only = ["rate-accuracy" if name in DERIVED else name for name in only]
    print(f"preset {study.preset.name}: {study.preset.about}", file=sys.stderr)
    _leave_a_core_free()
    keep_freed_memory()
    done = {}
    with ended_by_sigterm():
        for experiment in EXPERIMENTS.values():
            if only and experiment.name not in only:
                continue
            print(f"{experiment.name}: {experiment.about}", file=sys.stderr)
            started = time.monotonic()
            points, measured = experiment.run(study)
            done[experiment.name] = {
                "points": points,
                "measured": measured,
                "seconds": round(time.monotonic() - started, 1),
            }
        files = unchanged(study.out) or write_study_report(study.out)
    return {
        "benchmark": "study",
        "preset": study.preset.name,
        **study.context,
        "out": str(study.out),
        "experiments": done,
        "files": {name: str(path) for name, path in files.items()},
    }


def _study(args: argparse.Namespace, words: list[str]) -> dict[str, object]:
    from benchmarks.results.testbed import describe

    study = Study(
        PRESETS[args.preset],
        Path(args.data_dir),
        Path(args.out),
        default_families(args.clip) if args.families is None else parse_families(args.families, args.clip[0]),
        parse_peers(args.peers),
        args.clip,
        {"command": shlex.join(["thinwire-bench", *words]), "testbed": describe()},
        args.seed,
        args.limit,
        [name.strip() for name in (args.data or "").split(",") if name.strip()],
        args.skip_existing,
        args.captions,
        args.domain,
        args.judge,
        args.blip,
    )
    return run_study(study, args.only)


def _report(args: argparse.Namespace, words: list[str]) -> dict[str, object]:
    from benchmarks.report.page import write_study_report

    files = write_study_report(Path(args.out))
    return {"benchmark": "report", "out": args.out, "files": {name: str(path) for name, path in files.items()}}
