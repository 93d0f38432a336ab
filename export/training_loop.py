"""The loop of every training here: until its minutes or steps are done, logged, looked at and checkpointed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from export.distributed import ALONE, Group
from synthesis.memory import keep_freed_memory
from thinwire.errors import ThinwireError

LOG_EVERY_STEPS = 25


class Run(Protocol):
    """`progress`: share of the run that is done, 0 to 1; the loop raises it."""

    progress: float

    def step(self) -> dict[str, float]: ...

    def held_out(self) -> dict[str, float]: ...

    def state(self) -> dict: ...


class Budget(Protocol):
    """How long: `minutes` of work, or `steps` where they are set. batch: images of a step."""

    minutes: float
    steps: int | None
    batch: int


class Resumable(Run, Protocol):
    photographs: Any  # `export.photographs.collection.Photographs`

    def restore(self, state: dict) -> None: ...


class Settings(Budget, Protocol):
    """A dataclass. threads: of torch on a CPU."""

    threads: int


R = TypeVar("R", bound=Resumable)


class OneNet(Protocol):
    """A run of one net with one optimiser; steps: done so far; made_for: as `check_made_for` reads it."""

    made_for: dict[str, str]
    net: nn.Module
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    progress: float
    steps: int


def state_of(run: OneNet) -> dict:
    """All that `restore_state` needs to go on at this step."""
    return {
        "made_for": run.made_for,
        "net": run.net.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "generator": run.generator.get_state(),
        "progress": run.progress,
        "steps": run.steps,
    }


def restore_state(run: OneNet, state: dict, fix: str) -> None:
    """Goes on where `state_of` was. Raises `CheckpointError`, which names `fix`, where it is of another net."""
    check_made_for(run.made_for, state)
    own = run.net.state_dict()
    if {name: value.shape for name, value in own.items()} != {n: v.shape for n, v in state.get("net", {}).items()}:
        raise CheckpointError(f"the checkpoint is of another net: give another --out, or {fix}")
    run.net.load_state_dict(state["net"])
    run.optimiser.load_state_dict(state["optimiser"])
    run.generator.set_state(state["generator"].cpu())
    run.progress, run.steps = state["progress"], state["steps"]


def check_made_for(made_for: dict[str, str], state: dict) -> None:
    """made_for: what a run is of and its weights' shapes do not tell, such as the CLIP, by name. Raises
    `CheckpointError` for a checkpoint of something else: a finished run would be written again under another's name.

    Checkpoints of before 2026-11-29 do not say, and are taken.
    """
    for what, own in made_for.items():
        then = state.get("made_for", {}).get(what, own)
        if then != own:
            raise CheckpointError(
                f"the checkpoint is of {what} {then}, this run is of {own}: give another --out, or delete its folder "
                "to begin again"
            )


def save(run: Run, checkpoint: Path) -> None:
    """Writes the checkpoint whole or not at all."""
    partial = checkpoint.with_suffix(".partial")
    torch.save(run.state(), partial)
    partial.rename(checkpoint)


class CheckpointError(ThinwireError):
    """A checkpoint cannot be read; the message names the fix."""

    reason = "BAD_CHECKPOINT"


def load_checkpoint(path: Path, device: str) -> dict:
    """What `save` wrote. Raises `CheckpointError` for a file that is damaged, or none of a run's."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: a run that was trained, or has begun, holds one") from error
    except Exception as error:  # torch, pickle and zipfile each raise their own kinds on bad bytes
        cause = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged ({cause}): delete it to begin again") from error
    if not isinstance(state, dict) or "progress" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of a run")
    return state


def look_at_unseen(run: Run, folder: Path) -> None:
    """Adds a line of `held_out` to `folder`/held_out.jsonl."""
    with open(folder / "held_out.jsonl", "a") as unseen:
        unseen.write(json.dumps({"progress": round(run.progress, 4), **run.held_out()}) + "\n")


def run_to_end(
    run: Run,
    budget: Budget,
    folder: Path,
    title: str,
    *,
    look_from: float,
    look_every: float,
    save_every_s: float,
    group: Group = ALONE,
) -> None:
    """Steps until `run.progress` is 1; a run that was restored goes on from where it was.

    Writes `log.jsonl` (a line for each 25 steps), `held_out.jsonl` (from progress `look_from` on, `look_every` apart,
    and at the end) and `checkpoint.pt` (every `save_every_s` seconds, and at the end) into `folder`. Of several
    processes the first one writes, and its clock is everybody's.
    """
    window: list[dict[str, float]] = []
    first, step, look_at = run.progress, 0, look_from
    started = saved = time.monotonic()
    with (
        tqdm(total=100, initial=round(100 * first), desc=title, unit="%", disable=not group.first) as bar,
        open(folder / "log.jsonl" if group.first else os.devnull, "a") as log,
    ):
        while run.progress < 1.0:
            window.append(run.step())
            step += 1
            now = time.monotonic()
            done = step / budget.steps if budget.steps else (now - started) / (60 * budget.minutes)
            run.progress = group.agreed(min(1.0, first + done))
            last = run.progress >= 1.0
            if last or len(window) == LOG_EVERY_STEPS:
                means = group.mean([sum(entry[key] for entry in window) / len(window) for key in window[0]])
                mean = {key: round(value, 4) for key, value in zip(window[0], means)}
                speed = step * budget.batch / (now - started)
                record = {"step": step, "progress": round(run.progress, 4), "images_per_s": round(speed, 1), **mean}
                log.write(json.dumps(record) + "\n")
                log.flush()
                bar.n = round(100 * run.progress, 1)
                bar.set_postfix({key: f"{value:.3g}" for key, value in mean.items()} | {"img/s": f"{speed:.0f}"})
                window.clear()
            if last or run.progress >= look_at:
                if group.first:
                    look_at_unseen(run, folder)
                look_at = run.progress + look_every
            if last or now - saved > save_every_s:
                if group.first:
                    save(run, folder / "checkpoint.pt")
                saved = now


def train_in(
    folder: Path,
    settings: Settings,
    make: Callable[[], R],
    title: str,
    *,
    looks: int,
    device: str = "cpu",
    begin: Callable[[R], None] = lambda run: None,
) -> R:
    """Makes a run in `folder`, or goes on with the one that is there, and steps it to its end.

    begin: what a new run does before its first step. Writes what `run_to_end` writes (`held_out.jsonl` before the first
    step too, and `looks` times a run; `checkpoint.pt` every minute) and `settings.json`; at the end names the
    photographs that could not be read. Raises what `make` raises, and `CheckpointError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    run = make()
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        run.restore(load_checkpoint(checkpoint, device))
    else:
        begin(run)
    (folder / "settings.json").write_text(json.dumps(asdict(settings), indent=2))
    if run.progress == 0.0:
        look_at_unseen(run, folder)
    every = 1 / looks
    run_to_end(run, settings, folder, title, look_from=run.progress + every, look_every=every, save_every_s=60)
    run.photographs.report()
    return run


def looks_at_unseen(folder: Path) -> list[dict[str, float]]:
    """The lines of `folder`/held_out.jsonl, oldest first."""
    return [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
