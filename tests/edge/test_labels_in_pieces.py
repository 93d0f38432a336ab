"""Labels that are more than the link carries within a deadline: once per device, in pieces, before the frames."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path

import grpc
import pytest

from benchmarks.rig.bad_link import BadLink
from cloud.front.label_parts import LabelParts
from edge.cli import main
from edge.line.aio import AsyncClient
from edge.line.client import Client
from edge.line.label_upload import Progress, run_upload
from tests.edge.canned import Canned, answer_frame, fail_frame, serve
from tests.tiny_bundle import photo
from tests.waiting import until
from thinwire.v1 import inference_pb2 as pb

COUNT = 1000


@pytest.fixture(scope="module")
def labels() -> list[str]:
    rng = random.Random(7)
    return [f"{number} " + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=24)).strip() for number in range(COUNT)]


@pytest.fixture
def taking(canned):
    """A server that takes labels, whole and in pieces."""
    canned.labels, canned.parts = {}, LabelParts()
    return canned


@pytest.fixture
def words(tiny_bundle, tmp_path, labels) -> list[str]:
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        photo(folder, f"{number}.jpg", seed=number)
    where = ["--bundle", str(tiny_bundle.path), "--spool", str(tmp_path / "s.db"), "--out", str(tmp_path / "o.jsonl")]
    return ["run", str(folder), "--labels-file", str(tmp_path / "labels.txt"), "--summary", *where]


def compressed(labels: list[str]) -> int:
    return len(zlib.compress(pb.RegisterLabelsRequest(labels=labels, prompt_set="7").SerializeToString(), 9))


def results(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]


def test_labels_larger_than_link_and_timeout_cross_once_and_survive_cuts(words, taking, labels, tmp_path, capsys):
    """The whole takes several timeouts; the connection is cut on the way; a later run sends no labels at all."""
    import threading

    size = compressed(labels)
    with BadLink(taking.address, lambda _: 8 * size / 3) as link:  # three seconds for all of it

        def cut() -> None:
            until(lambda: taking.part_bytes > size / 2, 60)
            link.cut()

        cutter = threading.Thread(target=cut)
        cutter.start()
        assert main([*words, "--server", link.address, "--timeout", "1.2"]) == 0
        cutter.join()
        said = capsys.readouterr()
        facts = json.loads(said.out.splitlines()[-1])
        assert [line["ok"] for line in results(tmp_path)] == [True] * 3
        assert "labels go ahead of the frames" in said.err
        assert not any(each.labels for each in taking.frames)
        assert facts["sent_bytes"] < 2 * size
        before = taking.part_bytes
        photo(tmp_path / "in", "new.jpg", seed=9)
        assert main([*words, "--server", link.address, "--timeout", "1.2"]) == 0
        assert taking.part_bytes == before
        assert len(results(tmp_path)) == 4


def test_a_server_that_forgot_the_labels_is_given_them_again_in_pieces(words, taking, tmp_path):
    def forgets(request, context):
        taking.labels.clear()
        taking.frame_usual = answer_frame
        yield from fail_frame(grpc.StatusCode.NOT_FOUND, "UNKNOWN_LABEL_SET")(request, context)

    taking.frame_usual = forgets
    assert main([*words, "--server", taking.address]) == 0
    assert [line["ok"] for line in results(tmp_path)] == [True] * 3
    assert not any(each.labels for each in taking.frames)
    assert len(taking.registered) == 2


@pytest.mark.parametrize("knows", ["handles", "nothing"])
def test_an_older_server_gets_the_labels_whole_however_long_that_takes(words, canned, labels, tmp_path, knows):
    canned.labels = {} if knows == "handles" else None
    whole = pb.RegisterLabelsRequest(labels=labels).ByteSize()
    with BadLink(canned.address, lambda _: 8 * whole / 1.5) as link:
        assert main([*words, "--server", link.address, "--timeout", "0.8"]) == 0
    assert [line["ok"] for line in results(tmp_path)] == [True] * 3


def test_clients_send_many_labels_in_pieces_before_the_first_image(taking, tiny_bundle, labels):
    import numpy as np

    frame = np.zeros((64, 64, 3), np.uint8)
    with Client(taking.address, tiny_bundle, timeout_s=20) as client:
        client.classify(frame, labels)
    assert (len(taking.registered), taking.requests[-1].label_set) == (1, next(iter(taking.labels)))
    assert taking.part_bytes == compressed(labels)


async def test_the_async_client_does_the_same_and_copes_with_an_older_server(taking, tiny_bundle, labels):
    import numpy as np

    frame = np.zeros((64, 64, 3), np.uint8)
    async with AsyncClient(taking.address, tiny_bundle, timeout_s=20) as client:
        await client.classify(frame, labels)
        assert taking.requests[-1].label_set
        taking.parts = None
        await client.classify(frame, labels[1:])
    assert taking.requests[-1].label_set
    assert len(taking.registered) == 2


def test_a_connection_with_progress_is_not_taken_for_dead(words, canned, tmp_path):
    """Frames that together take longer than the timeout, but are answered one by one: one connection."""
    import time

    def slowly(request, context):
        time.sleep(0.6)
        yield from answer_frame(request, context)

    for number in range(3, 8):
        photo(tmp_path / "in", f"{number}.jpg", seed=number)
    canned.frame_usual = slowly
    assert main([*words, "--labels", "a,b", "--server", canned.address, "--timeout", "3", "--in-flight", "8"]) == 0
    assert canned.streams == 1


# ---------------------------------------------------------------- pieces, one by one


def test_an_upload_goes_on_where_the_last_one_ended_and_loses_nothing_to_a_restart(labels):
    from edge.errors import ServerTimeout, ServerUnreachable

    server, sent, seen = LabelParts(), [], []
    registration = pb.RegisterLabelsRequest(labels=labels)
    size = len(zlib.compress(registration.SerializeToString(deterministic=True), 9))

    def send(part):
        sent.append(len(part.data))
        if len(sent) == 4:
            raise ServerUnreachable("gone")
        if len(sent) == 7:
            raise ServerTimeout("slow")
        if len(sent) == 9:
            server._uploads.clear()  # the server was started again
        held, whole = server.take(part)
        response = pb.RegisterLabelsPartResponse(held_bytes=held)
        if whole is not None:
            assert list(whole.labels) == labels
            response.registered.label_set = "h"
        return response

    def tell(progress: Progress) -> None:
        seen.append(progress.held_bytes)

    with pytest.raises(ServerUnreachable):
        run_upload(registration, send, tell)
    reached = seen[-1]
    assert 0 < reached < size
    seen.clear()
    assert run_upload(registration, send, tell).label_set == "h"
    assert seen[0] == reached
    assert seen[-1] == size


def test_older_and_newer_ends_work_with_each_other(tiny_bundle, labels):
    """A server without RegisterLabelsPart: the same call, in one message."""
    old = Canned([tiny_bundle])
    old.labels = {}
    with serve(old) as address, Client(address, tiny_bundle, timeout_s=20) as client:
        reply = client.uplink.register(pb.RegisterLabelsRequest(labels=labels))
        assert old.labels[reply.label_set] == labels
        client.uplink.register(pb.RegisterLabelsRequest(labels=labels))
    assert len(old.registered) == 2
