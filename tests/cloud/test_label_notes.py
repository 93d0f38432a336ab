"""Labels that a CLIP cannot tell apart compete as one, and whoever chose them hears of it once."""

from __future__ import annotations

import numpy as np
import pytest

from cloud.engine.text_heads import make_head
from edge.field.fallback import LabelVectors
from edge.line.client import Client
from tests.cloud.served import classify, jpeg
from thinwire.label_notes import coinciding
from thinwire.v1 import inference_pb2 as pb

LONG = "a street at night with many lamps and wet stones and cars and people and trees and shops and rain and "


def ask(served, packet, labels, **fields) -> pb.ClassifyResponse:
    return served.stub.Classify(classify(packet, labels=labels, **fields), timeout=60)


def probabilities(reply: pb.ClassifyResponse) -> dict[str, float]:
    return {each.label: pytest.approx(each.probability, abs=1e-5) for each in reply.predictions}


@pytest.mark.parametrize(
    ("labels", "kept", "places", "why"),
    [
        (["dog", "Dog", "DOG", "cat"], ["dog", "cat"], [0, 3], "differ in upper and lower case"),
        (["café", "cafe\u0301", "cat"], ["café", "cat"], [0, 2], "how accents or spaces are written"),
        (["red car", "red  car", "cat"], ["red car", "cat"], [0, 2], "how accents or spaces are written"),
        (
            ["fire hydrant", '"fire hydrant"', "fire_hydrant", "cat"],
            ["fire hydrant", "cat"],
            [0, 3],
            "quotation marks or",
        ),
        (["cat", LONG + "one", LONG + "two", LONG + "three"], ["cat", LONG + "one"], [0, 1], "first 16 tokens"),
    ],
)
def test_labels_that_coincide_count_once(serve, make_packet, labels, kept, places, why):
    served = serve()
    reply = ask(served, make_packet(), labels, top_k=9)
    once = ask(served, make_packet(), kept, top_k=9)
    assert {each.label: each.probability for each in reply.predictions} == probabilities(once)
    assert sorted(each.index for each in reply.predictions) == places
    assert list(once.notes) == []
    (note,) = reply.notes
    assert why in note
    assert repr(labels[places[0]])[:20] in note or repr(labels[places[1]])[:20] in note


def test_a_single_label_is_told_what_it_means(serve, make_packet):
    served = serve()
    for labels in (["cat"], ["cat", "CAT"]):
        reply = ask(served, make_packet(), labels)
        assert [each.probability for each in reply.predictions] == [1.0]
        assert "one label alone always gets 100 %" in reply.notes[-1]


def test_notes_come_with_the_labels_and_not_with_each_answer_by_handle(serve, make_packet):
    served = serve()
    labels = ["dog", "Dog", "cat"]
    registered = served.stub.RegisterLabels(pb.RegisterLabelsRequest(labels=labels), timeout=60)
    assert len(registered.notes) == 1
    by_handle = classify(make_packet(), labels=[], label_set=registered.label_set)
    assert list(served.stub.Classify(by_handle, timeout=60).notes) == []
    frames = [classify(make_packet(1), labels=labels, frame_id=1), classify(make_packet(2), labels=[], frame_id=2)]
    requests = (pb.ClassifyStreamRequest(request=each) for each in frames)
    answers = {each.frame_id: each.result for each in served.stub.ClassifyStream(requests, timeout=60)}
    assert sorted(len(answers[frame].notes) for frame in (1, 2)) == [0, 1]  # once, with whichever is answered first


def test_the_edge_hands_notes_on(serve):
    served = serve()
    with Client(served.address, bundle="layered") as client:
        first = client.classify_file(jpeg(), ["dog", "DOG", "cat"])
    assert "upper and lower case" in first.notes[0]
    assert first.to_dict()["notes"] == first.notes


def test_the_device_s_own_answers_count_them_once_too():
    rows = np.eye(8, dtype=np.float32)[[0, 1, 1, 2]]
    found = LabelVectors(("a", "b", "B", "c"), rows, 1.0).rank(np.eye(8, dtype=np.float32)[1], 9)
    assert [each["label"] for each in found] == ["b", "a", "c"]
    assert sum(each["probability"] for each in found) == pytest.approx(1, abs=1e-5)


def test_equal_vectors_are_found_among_many():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[[7, 2999, 1500]] = rows[7] + rng.normal(size=(3, 32)).astype(np.float32) * 1e-7  # rounding
    rows[20:40] = rows[20]
    first = coinciding(rows)
    assert set(first[[7, 1500, 2999]]) == {7}
    assert set(first[20:40]) == {20}
    assert (first == np.arange(3000)).sum() == 3000 - 2 - 19
    assert coinciding(rows[:1]).tolist() == [0]


def test_many_groups_are_told_in_few_words():
    rows = np.repeat(np.eye(16, dtype=np.float32), 9, axis=0)
    head = make_head(tuple(f"word {place}" for place in range(len(rows))), rows, 100.0)
    assert len(head.kept) == 16
    assert len(head.notes) == 4
    assert "and 5 more are one label" in head.notes[0]
    assert head.notes[-1].startswith("13 more groups")
    assert max(map(len, head.notes)) < 300
