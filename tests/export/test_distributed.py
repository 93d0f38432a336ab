"""Two processes train as one does: gloo on the CPU, the command that users run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from export.distributed import Group, GroupError, join_group
from tests.export.photographs import write_pack

ROOT = Path(__file__).resolve().parents[2]


def test_a_batch_is_shared_out_in_equal_parts(monkeypatch):
    assert [Group(rank, 4).part(8) for rank in range(4)] == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(GroupError, match="multiple"):
        join_group("cpu", 16)


def trained(out: Path, pack: Path, processes: int, steps: int) -> dict:
    words = ["train", "conv", "--images", str(pack), "--steps", str(steps), "--batch", "4", "--threads", "1"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "export.cli"]
    command = [sys.executable, *(launcher if processes > 1 else ["-m", "export.cli"]), *words, "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "log.jsonl").read_text().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_follow_the_loss_of_one_and_either_goes_on_with_the_run(tmp_path):
    """The same photographs, crops and texts at the same total batch; only the noise of rounding is drawn apart."""
    pack = write_pack(tmp_path / "pack.tar")
    one, two = (trained(tmp_path / f"of-{count}", pack, count, 5) for count in (1, 2))
    for figure in ("loss", "feature", "answer"):
        assert two[figure] == pytest.approx(one[figure], rel=0.02)
    for name, value in torch.load(tmp_path / "of-1" / "checkpoint.pt", weights_only=True)["synthesis"].items():
        other = torch.load(tmp_path / "of-2" / "checkpoint.pt", weights_only=True)["synthesis"][name]
        torch.testing.assert_close(other, value, rtol=0.1, atol=5e-3)
    state = torch.load(tmp_path / "of-2" / "checkpoint.pt", weights_only=True)
    torch.save({**state, "progress": 0.6}, tmp_path / "of-2" / "checkpoint.pt")
    record = trained(tmp_path / "of-2", pack, 1, 5)  # what two began, one finishes
    assert record["progress"] == 1.0
    assert (tmp_path / "of-2" / "bundle" / "card.json").exists()
