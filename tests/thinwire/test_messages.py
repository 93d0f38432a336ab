"""The messages of one frame in several packets: bytes that must never drift, and readers of earlier releases."""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from thinwire.v1 import inference_pb2 as pb

STUDENT, STILL = bytes.fromhex("01020304"), bytes.fromhex("a1a2a3a4")

GOLDEN = {
    "first": (
        pb.ClassifyStreamRequest(
            request=pb.ClassifyRequest(
                image=pb.ImageInput(packet=bytes.fromhex("5457010101020304036162636ed6d011")),
                labels=["cat"],
                frame_id=7,
            ),
            progressive=pb.Progressive(
                max_layers=1, confidence=0.5, others=[pb.Offer(model_id=STILL, layers=[1, 2, 3])]
            ),
        ),
        "0a1b0a120a105457010101020304036162636ed6d0111203636174300712140801150000003f1a0b0a04a1a2a3a41203010203",
    ),
    "asked": (
        pb.ClassifyStreamResponse(
            frame_id=7, need_more=pb.NeedMore(layer=2, so_far=pb.ClassifyResponse(frame_id=7), model_id=STILL)
        ),
        "0807220c0802120220072204a1a2a3a4",
    ),
    "follows": (
        pb.ClassifyStreamRequest(
            request=pb.ClassifyRequest(image=pb.ImageInput(packet=b"TW"), frame_id=7), follows=True
        ),
        "0a080a040a02545730072001",
    ),
    "fused": (
        pb.ClassifyResponse(
            opinions=[pb.Opinion(bundle="student", layers=5, weight=0.5, label="cat", probability=0.25)]
        ),
        "321a0a0773747564656e7410051d0000003f22036361742d0000803e",
    ),
    "offer of a server": (
        pb.BundleInfo(name="student", model_id=STUDENT, fuses_with=[STILL]),
        "0a0773747564656e741204010203043a04a1a2a3a4",
    ),
}


def test_the_bytes_of_every_message_stay():
    for name, (message, golden) in GOLDEN.items():
        assert message.SerializeToString(deterministic=True).hex() == golden, name
        assert type(message).FromString(bytes.fromhex(golden)) == message, name


def _before(name: str, fields: set[str]) -> type:
    """A message as a release had it that knew only these of its fields."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    (wanted,) = [each for each in file.message_type if each.name == name]
    for place in range(len(wanted.field) - 1, -1, -1):
        if wanted.field[place].name not in fields:
            del wanted.field[place]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"thinwire.v1.{name}"))


def test_an_earlier_server_reads_the_first_packet_as_a_plain_request():
    old = _before("ClassifyStreamRequest", {"request", "progressive", "more"})
    message, _ = GOLDEN["first"]
    got = old.FromString(message.SerializeToString())
    assert got.request.frame_id == 7
    assert got.progressive.max_layers == 1
    again, _ = GOLDEN["follows"]
    assert old.FromString(again.SerializeToString()).request.image.packet == b"TW", "answered by itself"


def test_an_earlier_client_reads_a_fused_answer():
    old = _before("ClassifyResponse", {"predictions", "timing", "model", "frame_id", "notes"})
    message, _ = GOLDEN["fused"]
    message = pb.ClassifyResponse(frame_id=3, opinions=message.opinions)
    assert old.FromString(message.SerializeToString()).frame_id == 3


def test_a_message_without_the_new_fields_has_the_bytes_that_it_had():
    assert pb.Progressive(max_layers=3, confidence=0.5).SerializeToString().hex() == "0803150000003f"
    assert pb.NeedMore(layer=2, confidence=0.5).SerializeToString().hex() == "08021d0000003f"
    assert pb.ClassifyStreamRequest(request=pb.ClassifyRequest(frame_id=7)).SerializeToString().hex() == "0a023007"
