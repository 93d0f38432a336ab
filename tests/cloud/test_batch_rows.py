"""One batch, few calls: a decoder runs once for its packets, an image tower once for its pictures, in order."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from cloud.engine.prepared import Prepared
from cloud.networks.batch_rows import by_decoder, by_tower
from cloud.networks.onnx.runner import OnnxRunner


def test_places_by_decoder_and_by_tower():
    nets, file = (object(), object()), np.zeros((4, 4, 3), np.uint8)
    symbols = np.zeros((1, 1, 1), np.int32)
    batch = [
        Prepared(symbols, model_id=b"a", net=nets[0]),
        Prepared(file),
        Prepared(symbols, model_id=b"a", net=nets[0]),
    ]
    batch += [Prepared(symbols, model_id=b"a", net=nets[1]), Prepared(file[:2]), Prepared(file)]
    assert by_decoder(batch) == [[0, 2], [1, 5], [3], [4]]
    plain, adapted = [], []  # equal, and not the same
    assert [places for _, places in by_tower([plain, adapted, plain])] == [[0, 2], [1]]
    assert by_tower([plain, adapted])[1][0] is adapted


class Tower:
    """Vectors (mean of the picture, which tower)."""

    embed_dim, image_height, image_width = 2, 4, 4

    def __init__(self, number: int) -> None:
        self.number, self.sizes = number, []

    def fit(self, images):
        return images

    def encode_images(self, images):
        self.sizes.append(len(images))
        return np.stack([images.mean((1, 2, 3)), np.full(len(images), self.number)], 1)


class Decoder:
    """Pictures in the value of their first symbol."""

    gives_vectors = False

    def __init__(self) -> None:
        self.sizes = []

    def __call__(self, symbols, n_layers):
        self.sizes.append(len(symbols))
        return np.broadcast_to(symbols[:, :1, :1, :1] / np.float32(10), (len(symbols), 3, 4, 4))


def test_a_batch_of_two_towers_takes_one_call_of_each_network():
    plain, adapted, decoder, other = Tower(1), Tower(2), Decoder(), Decoder()

    def packet(value, net, tower):
        return Prepared(np.full((1, 1, 1), value, np.int32), "b", 1, b"id", net, tower)

    batch = [packet(1, decoder, plain), packet(2, decoder, adapted), packet(3, other, plain), packet(4, decoder, plain)]
    batch.append(Prepared(np.full((4, 4, 3), 255, np.uint8), clip=plain))
    got = OnnxRunner(SimpleNamespace(kind="cpu")).run(batch).embeddings
    np.testing.assert_allclose(got, [[0.1, 1], [0.2, 2], [0.3, 1], [0.4, 1], [1.0, 1]], atol=1e-6)
    assert (decoder.sizes, other.sizes, plain.sizes, adapted.sizes) == ([3], [1], [4], [1])
