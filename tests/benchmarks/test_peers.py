"""Peers: files of plausible sizes that hold nothing but the picture, and views of the right shape out of them."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.codecs.peers import (
    BARE,
    PEERS,
    SELECTOR_BYTES,
    WHOLE,
    UnknownPeer,
    decode,
    encode,
    restore,
    sides,
    whole_file,
)
from benchmarks.judges.metrics import psnr_db
from tests.tiny_bundle import synthetic_views
from thinwire.errors import DamagedFrame

EVERY = pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)


@pytest.fixture(scope="module")
def view() -> np.ndarray:
    return synthetic_views(1, 224, seed=3)[0]


@EVERY
def test_round_trip_of_every_size(peer, view):
    before = view.copy()
    for height, width in sides(224, 224):
        data = encode(peer, view, height, width, peer.ladder[-1])
        seen = restore(peer, data, 224, 224)
        assert (seen.shape, seen.dtype) == ((224, 224, 3), np.uint8)
        assert psnr_db(view, seen) > 20
        assert 40 < len(data) < 40_000
    assert np.array_equal(view, before)


@EVERY
def test_bytes_and_fidelity_rise_with_the_ladder(peer, view):
    files = [encode(peer, view, 112, 112, value) for value in peer.ladder]
    sizes = [len(data) for data in files]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 1.5 * sizes[0]
    assert psnr_db(view, restore(peer, files[-1], 224, 224)) > psnr_db(view, restore(peer, files[0], 224, 224))
    assert encode(peer, view, 112, 112, peer.ladder[3]) == files[3]


@EVERY
def test_a_smaller_view_takes_fewer_bytes(peer, view):
    least = [len(encode(peer, view, h, w, peer.ladder[-1])) for h, w in sides(224, 224)]
    assert least == sorted(least, reverse=True)


@EVERY
def test_files_hold_no_metadata(peer, view):
    data = whole_file(peer, encode(peer, view, 112, 112, peer.ladder[3]), 224, 224)
    for mark in (b"Exif", b"ICC_PROFILE", b"ICCP", b"http://ns.adobe.com", b"xmp", b"XMP", b"Photoshop", b"Creat"):
        assert mark not in data
    if not peer.name.startswith("jxl"):  # Pillow does not read it
        image = Image.open(io.BytesIO(data))
        image.load()
        assert not image.getexif()
        assert not {"exif", "icc_profile", "xmp", "comment"} & set(image.info)
    else:
        assert data.startswith(b"\xff\x0a")  # the bare codestream


def test_jpeg_is_optimised_and_subsampled(view):
    data = encode(PEERS["jpeg-file"], view, 224, 224, 35)
    image = Image.open(io.BytesIO(data))
    assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
    plain = io.BytesIO()
    Image.fromarray(view).save(plain, "JPEG", quality=35)
    assert len(data) < len(plain.getvalue())


@pytest.mark.parametrize("name", BARE)
def test_a_bare_peer_gives_its_whole_files_pixels(name, view):
    bare, whole = PEERS[name], PEERS[WHOLE[name]]
    for height, width in sides(224, 224)[1:]:
        for value in (bare.ladder[0], bare.ladder[4]):
            data, file = (encode(peer, view, height, width, value) for peer in (bare, whole))
            assert np.array_equal(decode(bare, data, 224, 224), decode(whole, file, 224, 224))
            assert np.array_equal(restore(bare, data, 224, 224), restore(whole, file, 224, 224))
            assert np.array_equal(bare.decode(whole_file(bare, data, 224, 224)), decode(bare, data, 224, 224))
    assert len(data) < len(file)


@pytest.mark.parametrize("name", BARE)
def test_damaged_bare_files_are_typed_errors(name, view):
    peer = PEERS[name]
    data = encode(peer, view, 56, 56, peer.ladder[3])
    unnamed = (0).to_bytes(SELECTOR_BYTES, "big"), b"\xff\xff"
    for broken in (b"", data[:1], data[:SELECTOR_BYTES], *(each + data[SELECTOR_BYTES:] for each in unnamed)):
        with pytest.raises(DamagedFrame):
            restore(peer, broken, 224, 224)
    rng = np.random.default_rng(0)
    for _ in range(30):
        changed = bytearray(data[: rng.integers(3, len(data) + 1)])
        changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
        with contextlib.suppress(DamagedFrame):  # without a checksum some decode to another picture
            assert restore(peer, bytes(changed), 224, 224).shape == (224, 224, 3)


def test_a_selector_names_what_its_ladder_holds(view):
    with pytest.raises(UnknownPeer, match="its ladder is"):
        encode(PEERS["webp"], view, 56, 56, 33)
    with pytest.raises(UnknownPeer, match="cannot name 56x57"):
        encode(PEERS["webp"], view, 57, 56, 30)
    for size in sides(224, 224, range(1, 300, 13)):
        assert decode(PEERS["webp"], encode(PEERS["webp"], view, *size, 5), 224, 224).shape == (*size, 3)


def test_sizes_follow_the_view():
    assert sides(224, 224)[0] == (224, 224)
    assert sides(64, 64) == [(64, 64), (46, 46), (32, 32), (23, 23), (16, 16), (11, 11)]
    assert sides(448, 224)[2] == (224, 112)


def test_peers_say_what_did_the_work():
    for peer in PEERS.values():
        assert "None" not in peer.version()
        assert any(digit in peer.version() for digit in "0123456789")


def test_psnr_by_hand():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr_db(black, black) == 100
    assert psnr_db(black, black + 255) == pytest.approx(0)
    assert psnr_db(black, black + 1) == pytest.approx(48.1308, abs=1e-3)
