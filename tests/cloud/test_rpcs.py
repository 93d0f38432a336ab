"""Rank, Decode, label sets and CLIPs by name, against a real server."""

from __future__ import annotations

import hashlib
import io
import zlib

import grpc
import numpy as np
import pytest
from PIL import Image

from cloud.decode import Decoder
from cloud.front.limits import ServerOptions
from tests.cloud.served import Served, classify, jpeg, refused
from thinwire.v1 import inference_pb2 as pb

INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


@pytest.fixture(scope="module")
def served(tiny_clip, tiny_codec):
    server = Served(tiny_clip, tiny_codec, options=ServerOptions(max_rank_images=4, max_label_sets=2))
    yield server
    server.close()


def rank(**fields) -> pb.RankRequest:
    return pb.RankRequest(**fields)


def test_rank_orders_texts_for_an_image_by_cosine(served, tiny_clip, make_packet):
    texts = ["a cat", "two dogs", "rain", "a cat"]
    image = pb.ImageInput(packet=make_packet(3))
    vector = np.array(served.stub.Embed(pb.EmbedRequest(image=image), timeout=60).embedding.values)
    cosines = tiny_clip.encode_texts(texts) @ vector
    got = served.stub.Rank(rank(image=image, texts=texts), timeout=60)
    assert [each.index for each in got.ranked] == np.argsort(-cosines, kind="stable").tolist()
    assert got.ranked[0].similarity == pytest.approx(float(cosines.max()), abs=1e-5)
    assert got.model.clip == tiny_clip.name
    assert len(served.stub.Rank(rank(image=image, texts=texts, top_k=2), timeout=60).ranked) == 2


def test_rank_orders_images_for_a_text_and_names_those_it_cannot(served, tiny_clip, make_packet):
    images = [
        pb.ImageInput(packet=make_packet(1)),
        pb.ImageInput(packet=b"broken"),
        pb.ImageInput(image_file=jpeg()),
        pb.ImageInput(packet=make_packet(2)),
    ]
    got = served.stub.Rank(rank(text="a cat", images=images), timeout=60)
    vectors = {
        place: np.array(served.stub.Embed(pb.EmbedRequest(image=images[place]), timeout=60).embedding.values)
        for place in (0, 2, 3)
    }
    text = tiny_clip.encode_texts(["a cat"])[0]
    wanted = sorted(vectors, key=lambda place: -float(vectors[place] @ text))
    assert [each.index for each in got.ranked] == wanted
    assert [(each.index, each.error.reason) for each in got.failures] == [(1, "BAD_PACKET")]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"text": "a cat"},
        {"text": "a cat", "images": [pb.ImageInput(packet=b"x")] * 5},
        {"text": "a cat", "images": [pb.ImageInput(packet=b"x")], "texts": ["a dog"]},
        {"image": pb.ImageInput(packet=b"x")},
        {"image": pb.ImageInput(), "texts": ["a dog"]},
        {"text": " ", "images": [pb.ImageInput(packet=b"x")]},
    ],
)
def test_rank_refuses_half_a_question(served, fields):
    assert refused(lambda: served.stub.Rank(rank(**fields), timeout=60))[:2] == INVALID


def test_rank_fails_as_a_whole_when_its_only_image_is_bad(served):
    request = rank(image=pb.ImageInput(packet=b"broken"), texts=["a dog"])
    assert refused(lambda: served.stub.Rank(request, timeout=60))[1] == "BAD_PACKET"


def test_decode_shows_the_picture_that_the_packet_holds(served, tiny_codec, make_packet):
    data = make_packet(4, 1)
    got = served.stub.Decode(pb.DecodeRequest(packet=data), timeout=60)
    picture = np.asarray(Image.open(io.BytesIO(got.png)))
    np.testing.assert_array_equal(picture, Decoder([tiny_codec]).picture(data))
    assert (got.width, got.height, got.model.bundle, got.model.layers) == (96, 96, tiny_codec.name, 1)
    assert refused(lambda: served.stub.Decode(pb.DecodeRequest(packet=data[:-1]), timeout=60))[1] == "BAD_PACKET"


def test_a_label_set_is_registered_once_and_named_by_its_handle(served, make_packet):
    labels = ["", "cat", "cat", " dog", "car"]
    request = pb.RegisterLabelsRequest(labels=labels, prompt_set="1")
    registered = served.stub.RegisterLabels(request, timeout=60)
    assert registered.labels == 3
    builds = served.engine.heads.counts["builds"]
    short = served.stub.Classify(classify(make_packet(), labels=[], label_set=registered.label_set), timeout=60)
    long = served.stub.Classify(classify(make_packet(), labels=labels, prompt_set="1"), timeout=60)
    assert short.predictions == long.predictions
    assert served.engine.heads.counts["builds"] == builds  # the text tower had run before the first image
    assert served.stub.RegisterLabels(request, timeout=60).label_set == registered.label_set


def test_a_handle_beside_labels_or_of_nothing_is_refused(served, make_packet):
    packet = make_packet()
    handle = served.stub.RegisterLabels(pb.RegisterLabelsRequest(labels=["one"]), timeout=60).label_set
    both = classify(packet, labels=["two"], label_set=handle)
    assert refused(lambda: served.stub.Classify(both, timeout=60))[:2] == INVALID
    unknown = classify(packet, labels=[], label_set="0" * 32)
    code, reason, error = refused(lambda: served.stub.Classify(unknown, timeout=60))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_LABEL_SET")
    assert "RegisterLabels" in error.details()
    bad = pb.RegisterLabelsRequest(labels=["", " "])
    assert refused(lambda: served.stub.RegisterLabels(bad, timeout=60))[1] == "BAD_LABELS"


def test_the_oldest_label_set_goes_when_there_are_too_many(served, make_packet):
    def register(name):
        return served.stub.RegisterLabels(pb.RegisterLabelsRequest(labels=[name]), timeout=60).label_set

    first, second = register("first"), register("second")
    use = classify(make_packet(), labels=[], label_set=first)
    served.stub.Classify(use, timeout=60)  # now the second is the oldest
    register("third")
    assert served.stub.Classify(use, timeout=60).predictions[0].label == "first"
    gone = classify(make_packet(), labels=[], label_set=second)
    assert refused(lambda: served.stub.Classify(gone, timeout=60))[1] == "UNKNOWN_LABEL_SET"


def test_frames_of_a_stream_take_the_last_handle_too(served, make_packet):
    handle = served.stub.RegisterLabels(pb.RegisterLabelsRequest(labels=["only", "these"]), timeout=60).label_set
    frames = [classify(make_packet(n), labels=[], frame_id=n, label_set=handle if n == 0 else "") for n in range(3)]
    answers = served.stub.ClassifyStream(iter(pb.ClassifyStreamRequest(request=each) for each in frames), timeout=60)
    assert [{p.label for p in each.result.predictions} for each in answers] == [{"only", "these"}] * 3


def test_a_clip_that_the_server_does_not_have_is_refused_by_name(served, make_packet):
    request = classify(make_packet(), clip="ViT-B-32:openai")
    code, reason, error = refused(lambda: served.stub.Classify(request, timeout=60))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")
    assert "it has tiny-random-clip" in error.details()


def test_labels_in_pieces_are_waited_for_by_asking_again(served, monkeypatch):
    """Vectors that take longer than a deadline: each answer comes soon, and the work goes on between them."""
    monkeypatch.setattr("cloud.front.service.PART_WAIT_S", 0.0)
    request = pb.RegisterLabelsRequest(labels=[f"piece {number}" for number in range(300)], prompt_set="7")
    data = zlib.compress(request.SerializeToString())
    part = pb.RegisterLabelsPartRequest(upload=hashlib.sha256(data).digest(), total_bytes=len(data), data=data)
    replies = []
    while not replies or not replies[-1].HasField("registered"):
        replies.append(served.stub.RegisterLabelsPart(part, timeout=60))
        assert replies[-1].held_bytes == len(data)
    assert replies[-1].registered == served.stub.RegisterLabels(request, timeout=30)
    bad = pb.RegisterLabelsRequest(labels=["x" * 1000])
    data = zlib.compress(bad.SerializeToString())
    part = pb.RegisterLabelsPartRequest(upload=hashlib.sha256(data).digest(), total_bytes=len(data), data=data)
    assert refused(lambda: served.stub.RegisterLabelsPart(part, timeout=60))[1] == "BAD_LABELS"
