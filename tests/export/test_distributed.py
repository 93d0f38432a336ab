"""Two processes train as one does: gloo on the CPU, the command that users run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.cli import main
from export.distributed import Group, GroupError, join_group
from export.families import FAMILIES
from export.train import Trainer
from tests.export.photographs import write_pack

ROOT = Path(__file__).resolve().parents[2]


def test_a_batch_is_shared_out_in_equal_parts(monkeypatch):
    assert [Group(rank, 4).part(8) for rank in range(4)] == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(GroupError, match="multiple"):
        join_group("cpu", 16)


@pytest.mark.parametrize("command", ["student", "tune", "adapt", "restore"])
def test_a_command_that_knows_one_process_is_not_run_in_two(command, monkeypatch, tmp_path):
    """Both would draw the same numbers, learn the same, and write into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match=f"{command} works in one process, torchrun started 2"):
        main([command, "--steps", "1", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("draw", [torch.rand_like, torch.randn_like])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_each_process_draws_its_own_part_of_the_noise_of_one(draw, memory):
    latents = torch.zeros(6, 3, 4, 5).contiguous(memory_format=memory)
    torch.manual_seed(3)
    whole = Group().noise(draw, latents)
    for rank in range(3):
        group = Group(rank, 3)
        torch.manual_seed(3)
        assert torch.equal(group.noise(draw, latents[group.part(6)]), whole[group.part(6)])


class Half(Group):
    """One of two processes as far as its part of the batch goes, alone."""

    def average_gradients(self, parameters):
        pass

    def mean(self, values):
        return list(values)

    def same_start(self, modules):
        pass


def test_two_halves_of_a_batch_make_the_whole(settings):
    """The same photographs, crops, layers and texts: the mean of what two processes see is what one sees."""
    records = []
    for group in (Group(), Half(0, 2), Half(1, 2)):
        trainer = Trainer(FAMILIES["conv"], replace(settings, batch=4), None, group)
        records.append(trainer.step())
    whole, *halves = records
    for figure in ("loss", "feature", "answer", "bytes_1"):
        assert sum(half[figure] for half in halves) / 2 == pytest.approx(whole[figure], rel=2e-3)


AVERAGED = """
import torch
from export.distributed import join_group
group, _ = join_group("cpu", 4)
a, b = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (5,)))
a.grad, b.grad = torch.full((2, 3), float(group.rank)), torch.arange(5.0) * (1 + group.rank)
group.average_gradients([a, b, torch.nn.Parameter(torch.zeros(1))])
assert torch.equal(a.grad, torch.full((2, 3), 0.5)) and torch.equal(b.grad, 1.5 * torch.arange(5.0))
assert group.mean([group.rank, 2.0]) == [0.5, 2.0] and group.agreed(7.0 + group.rank) == 7.0
net = torch.nn.Linear(2, 2)
group.same_start([net])
assert group.mean([net.weight.sum().item()])[0] == __import__("pytest").approx(net.weight.sum().item(), abs=1e-6)
"""


def test_gradients_figures_and_weights_are_shared_by_gloo(tmp_path):
    (tmp_path / "averaged.py").write_text(AVERAGED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = str(tmp_path / "averaged.py")
    done = subprocess.run([*command, script], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


IN_FLOAT32 = """
import contextlib, sys, torch
from export import teacher, train
from export.cli import main
teacher._quick = lambda net, tower: (net, torch.float32)
train.Trainer.autocast = lambda self: contextlib.nullcontext()
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def trained(out: Path, pack: Path, processes: int, steps: int) -> dict:
    """The last line of a run's log. `thinwire-export train`, but without half precision in teacher and nets."""
    (out.parent / "in_float32.py").write_text(IN_FLOAT32)
    words = ["train", "conv", "--images", str(pack), "--steps", str(steps), "--batch", "4", "--threads", "1"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(out.parent / "in_float32.py"), *words]
    command += ["--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "log.jsonl").read_text().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_follow_the_loss_of_one_and_either_goes_on_with_the_run(tmp_path):
    """Three steps, the whole of a short schedule, in float32: only the order of sums is another.

    Later a latent that lies between two symbols may be rounded to the other one, and the runs part: 0.5 % after four.
    """
    pack = write_pack(tmp_path / "pack.tar")
    one, two = (trained(tmp_path / f"of-{count}", pack, count, 3) for count in (1, 2))
    for figure in ("loss", "feature", "answer", "bytes_1", "bytes_2", "bytes_3"):
        assert two[figure] == pytest.approx(one[figure], rel=1e-3)
    state = torch.load(tmp_path / "of-2" / "checkpoint.pt", weights_only=True)
    torch.save({**state, "progress": 0.6}, tmp_path / "of-2" / "checkpoint.pt")
    record = trained(tmp_path / "of-2", pack, 1, 3)  # what two began, one finishes
    assert record["progress"] == 1.0
    assert (tmp_path / "of-2" / "bundle" / "card.json").exists()
