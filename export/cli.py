"""`thinwire-export`: train codecs and the shipped CLIP, and write them as bundles."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from export.arguments import build_parser
from export.photographs.options import photograph_options
from thinwire.errors import ThinwireError
from thinwire.files import told
from thinwire.text import safe_streams

OWN = ("thinwire", "export", "synthesis")


class RunError(ThinwireError):
    """A run folder, or what a command is asked to do with one, cannot be used; the message names the fix."""

    reason = "BAD_RUN"


def check_processes(command: str) -> None:
    """Raises `RunError` where torchrun started several processes of a command that knows nothing of the others: each
    would train the same by itself, and all would write into one folder."""
    if command != "train" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError(
            f"{command} works in one process, torchrun started {os.environ['WORLD_SIZE']}: run `thinwire-export "
            f"{command}` without torchrun (`train` alone is shared out)"
        )


def run_train(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from export.bundles import make_bundle
    from export.devices import pick_device
    from export.families import FAMILIES
    from export.train import PRESETS, train

    if args.family == "embedding":
        raise RunError("family embedding is not trained: use `thinwire-export embedding --clip clip-lite --out FOLDER`")
    if args.family not in FAMILIES:
        raise RunError(f"unknown family {args.family!r}; choose from {', '.join(FAMILIES)}")
    settings = replace(PRESETS[args.preset], steps=args.steps, seed=args.seed, threads=args.threads)
    if args.minutes is not None:
        settings = replace(settings, minutes=args.minutes)
    settings = replace(settings, device=pick_device(settings.device), photographs=photograph_options(args))
    if args.batch is not None:
        settings = replace(settings, batch=args.batch)
    if args.clip:
        settings = replace(settings, clips=tuple(args.clip))
    family = FAMILIES[args.family]
    if args.decoder is not None and args.decoder not in family.decoders:
        own = ", ".join(family.decoders) or "none beside its own"
        raise RunError(f"family {args.family} has no decoder {args.decoder!r}; --decoder takes: {own}")
    family = family.with_decoder(args.decoder)
    run = args.out or Path("runs") / "-".join(filter(None, (args.family, args.decoder)))
    train(family, settings, run, args.warm_start)
    if not args.no_bundle and int(os.environ.get("RANK", "0")) == 0:
        print(make_bundle(family, run, run / "bundle", photographs=settings.photographs.open()))


def run_bundle(args: argparse.Namespace) -> None:
    from export.bundles import make_bundle
    from export.families import FAMILIES

    for needed in ("settings.json", "checkpoint.pt"):
        if not (args.run / needed).exists():
            raise RunError(f"{args.run / needed} is missing: `thinwire-export train FAMILY --out {args.run}` writes it")
    settings = args.run / "settings.json"
    try:
        said = json.loads(settings.read_text())
        family = FAMILIES[said["family"]].with_decoder(said.get("decoder"))
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{settings} is not what `thinwire-export train` writes ({error!r}): train again") from error
    print(make_bundle(family, args.run, args.out, args.count, photograph_options(args).open()))


def run_embedding(args: argparse.Namespace) -> None:
    from export.embedding_bundle import make_embedding_bundle

    folder = make_embedding_bundle(args.clip, args.out, args.count, photograph_options(args))
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:>12,}  {file.name}")
    print(folder)


def run_student(args: argparse.Namespace) -> None:
    from export.student.bundle import make_student_bundle
    from export.student.distil import StudentSettings, distil

    fields = ("clip", "backbone", "size", "minutes", "steps", "count", "views", "batch", "seed", "threads")
    settings = StudentSettings(**{name: getattr(args, name) for name in fields}, photographs=photograph_options(args))
    run = args.out or Path("runs") / "student"
    folder = make_student_bundle(distil(settings, run), run / "bundle")
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:>12,}  {file.name}")
    print(folder)


def run_still(args: argparse.Namespace) -> None:
    from export.still import make_still_bundle

    print(make_still_bundle(args.out, args.count, photographs=photograph_options(args)))


def run_still_symbols(args: argparse.Namespace) -> None:
    from export.still_symbols import SymbolSettings, pack_still, table

    settings = SymbolSettings(args.bundle, args.count, args.seed, photograph_options(args))
    print(table(pack_still(settings, args.out)))
    print(args.out)


def run_restore(args: argparse.Namespace) -> None:
    from export.restoring import RestoreSettings
    from export.still import restore_still

    settings = RestoreSettings(
        minutes=args.minutes, steps=args.steps, count=args.count, seed=args.seed, threads=args.threads
    )
    print(restore_still(args.bundle, settings, photograph_options(args), args.out or Path("runs") / "restore"))


def run_adapt(args: argparse.Namespace) -> None:
    from export.adapt import AdaptSettings, adapt
    from export.devices import pick_device

    fields = ("bundle", "clip", "decoder", "minutes", "steps", "count", "rank", "batch", "seed", "threads")
    settings = AdaptSettings(
        **{name: getattr(args, name) for name in fields},
        rates=tuple(args.rates),
        learning_rate=args.learning_rate,
        device=pick_device(args.device),
        photographs=photograph_options(args),
    )
    adapter = adapt(settings, args.out or Path("runs") / f"adapt-{Path(args.bundle).name}")
    for file in sorted(adapter.path.iterdir()):
        print(f"{file.stat().st_size:>12,}  {file.name}")
    print(adapter.path)


def run_tune(args: argparse.Namespace) -> None:
    from export.devices import pick_device
    from export.tune.tuning import TuneSettings, tune

    fields = ("bundle", "clip", "into", "minutes", "steps", "count", "batch", "learning_rate", "seed", "threads")
    settings = TuneSettings(
        **{name: getattr(args, name) for name in fields},
        device=pick_device(args.device),
        photographs=photograph_options(args),
    )
    variant = tune(settings, args.out or Path("runs") / f"tune-{Path(args.bundle).name}-{args.into}")
    print(variant.path)


def run_card(args: argparse.Namespace) -> None:
    from export.bundles import record_metrics
    from thinwire.bundle import resolve_bundle

    folder, documents = resolve_bundle(args.bundle), []
    for path in args.results:
        try:
            documents.append(json.loads(path.read_text()))
        except ValueError as error:
            raise RunError(f"{path}: is not JSON ({error}); `thinwire-bench eval --json FILE` writes it") from error
    record_metrics(folder, documents)


def run_clip_lite(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from export.clip_lite.head import TUNED, HeadRecipe
    from export.clip_lite.joint import JointRecipe
    from export.clip_lite.pipeline import Recipe, build
    from export.clip_lite.spellings import SpellingRecipe

    beginnings = (args.tune, args.text_tower, args.text_start, args.spellings)
    if sum(each is not None for each in beginnings) > 1:
        raise RunError("--tune, --text-tower, --text-start and --spellings are four ways to begin: give one of them")
    if args.hold_out < 0:
        raise RunError("--hold-out: one of N names, or 0 for none")
    head = TUNED if args.tune else HeadRecipe()
    recipe = Recipe(
        tune=args.tune,
        distil_minutes=args.distil_minutes,
        head=replace(head, steps=args.head_steps or head.steps, regulariser=args.regulariser),
        joint=JointRecipe(minutes=args.joint_minutes, regulariser=args.regulariser),
        text_start=args.text_start,
        spellings=args.spellings,
        spelling=SpellingRecipe(steps=args.spelling_steps or SpellingRecipe.steps, held_too=args.spell_held),
        held_out=args.hold_out,
        threads=args.threads,
        backbone=args.backbone,
        backbone_weights=args.backbone_weights,
        text_tower=args.text_tower,
        views=args.views,
        photographs=photograph_options(args),
    )
    print(build(recipe, args.out))


def run_clip_onnx(args: argparse.Namespace) -> None:
    from export.clip_onnx.artefact import write_artefact

    folder = write_artefact(args.clip, args.out, int8=photograph_options(args) if args.int8 else None)
    card = json.loads((folder / "clip.json").read_text())
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:>12,}  {file.name}")
    print(f"{card['clip']}: {json.dumps(card['parity'])}")
    print(folder)


def run_graph(args: argparse.Namespace) -> None:
    from export.graphs import write_bundle_graph, write_variant_graph
    from synthesis.variant import CARD, load_variant
    from thinwire.bundle import load_bundle

    if not (Path(args.folder) / CARD).is_file():
        if args.bundle:
            raise SystemExit(f"thinwire-export graph: {args.folder} is no tuned decoder: leave --bundle out")
        print(write_bundle_graph(load_bundle(args.folder)))
        return
    variant = load_variant(args.folder)
    print(write_variant_graph(variant, load_bundle(args.bundle or variant.bundle), args.clip))


def run_evaluate(args: argparse.Namespace) -> None:
    from export.clip_lite.evaluate import Evaluator

    print(json.dumps(Evaluator(args.folder, args.teacher_text).report()))


def run_list(args: argparse.Namespace) -> None:
    from rich.console import Console

    from export.listing import table

    # A pipe has no width; cells broken at 80 columns would be no table
    Console(width=None if sys.stdout.isatty() else 200).print(table(args.bundles))


COMMANDS = {
    "train": run_train,
    "bundle": run_bundle,
    "embedding": run_embedding,
    "student": run_student,
    "still": run_still,
    "still-symbols": run_still_symbols,
    "restore": run_restore,
    "adapt": run_adapt,
    "tune": run_tune,
    "card": run_card,
    "clip-lite": run_clip_lite,
    "clip-lite-eval": run_evaluate,
    "clip-onnx": run_clip_onnx,
    "graph": run_graph,
    "list": run_list,
}


def main(argv: list[str] | None = None) -> int:
    """Every mistake of a user's ends as one line here; whatever else is raised is a fault of ours, and shows where."""
    safe_streams()
    args = build_parser().parse_args(argv)
    try:
        check_processes(args.command)
        COMMANDS[args.command](args)
    except ThinwireError as error:
        raise SystemExit(f"thinwire-export {args.command}: {one_line(error)}") from error
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in OWN:
            raise
        fix = "run `pip install 'thinwire[export]'`"
        raise SystemExit(f"thinwire-export {args.command}: {error}: {fix}") from error
    except OSError as error:  # files that cannot be read or written
        raise SystemExit(f"thinwire-export {args.command}: {one_line(told(error))}") from error
    except KeyboardInterrupt:
        print(f"thinwire-export {args.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
