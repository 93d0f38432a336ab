"""What surrounds CUDA graphs (padding, choice of size, the check against the plain tower), with a recorder for CPUs."""

from __future__ import annotations

import pytest
import torch

from cloud.networks.cuda_graphs import GraphedTower, Recording, with_graphs
from cloud.networks.precision import check_images


class Recorder:
    """Keeps the contract of `record_cuda` without a GPU: fixed input and output, computed by `replay`."""

    def __init__(self, error=0.0):
        self.error, self.replays = error, []

    def __call__(self, tower, example):
        still = example.clone()
        output = tower(still).clone()

        def replay():
            self.replays.append(len(still))
            output.copy_(tower(still) + self.error)

        return Recording(still, output, replay)


@torch.inference_mode()
def test_each_batch_takes_the_smallest_recording_that_holds_it():
    tower, recorder = torch.nn.Flatten(), Recorder()
    graphed = GraphedTower(tower, torch.zeros(1, 3, 2, 2), (4, 1), recorder)
    for count in (1, 2, 3, 4, 5):
        images = torch.randn(count, 3, 2, 2)
        torch.testing.assert_close(graphed(images), tower(images))
    assert recorder.replays == [1, 4, 4, 4]  # five run as they are
    kept = graphed(torch.ones(1, 3, 2, 2))
    graphed(torch.zeros(1, 3, 2, 2))
    assert kept.eq(1).all()  # a later batch does not change an earlier answer


def test_a_recorded_clip_gives_its_own_vectors(tiny_clip):
    recorder = Recorder()
    graphed = with_graphs(tiny_clip, recorder)
    images = check_images(tiny_clip, 6, seed=4)
    torch.testing.assert_close(graphed.encode_images(images), tiny_clip.encode_images(images), atol=1e-5, rtol=0)
    assert recorder.replays == [4, 8]
    assert graphed.id == tiny_clip.id


def test_a_tower_that_cannot_be_recorded_or_comes_out_otherwise_stays_plain(tiny_clip, caplog):
    def fails(tower, example):
        raise RuntimeError("operation not permitted when stream is capturing")

    assert with_graphs(tiny_clip, fails) is tiny_clip
    assert "cannot be recorded" in caplog.text
    assert with_graphs(tiny_clip, Recorder(error=1.0)) is tiny_clip
    assert "gives different vectors" in caplog.text


def test_a_real_cuda_graph_gives_the_same_vectors(tiny_clip_dir):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from cloud.networks.clip import load_clip

    clip = load_clip(str(tiny_clip_dir), "cuda")
    graphed = with_graphs(clip)
    assert graphed is not clip
    images = check_images(clip, 5).cuda()
    torch.testing.assert_close(graphed.encode_images(images), clip.encode_images(images), atol=1e-3, rtol=0)
