"""TLS, client certificates, tokens and shares, with real handshakes against a real server."""

from __future__ import annotations

import logging
import shutil

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

import cloud.front.access
from cloud.errors import BadConfiguration, RateLimited
from cloud.front.access import Security, Tokens
from cloud.front.admission import RateLimiter
from cloud.front.server import background_server
from tests.cloud.certificates import authority, signed
from tests.cloud.served import classify, refused
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc

TOKEN, OTHER = "correct-horse-battery-staple", "another-token-of-enough-length"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    ca, strange = authority(folder, "ca"), authority(folder, "strange-ca")
    pairs = {name: signed(folder, name, ca) for name in ("server", "renewed", "camera-7")}
    return {"ca": ca, "strange-ca": strange, "stranger": signed(folder, "stranger", strange), **pairs}


def connect(address, files, pair=None, trusting="ca"):
    """A channel of its own (gRPC shares connections between channels of equal arguments)."""
    roots = files[trusting].certificate.read_bytes()
    mine = (files[pair].key.read_bytes(), files[pair].certificate.read_bytes()) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(roots, *mine)
    return grpc.secure_channel(address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


def info(channel, **kwargs):
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    return stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=60, **kwargs)


def cannot_connect(channel):
    with channel, pytest.raises(grpc.RpcError) as caught:
        info(channel)
    return caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_tls_answers_those_who_trust_it_and_no_plaintext(serve, files):
    served = serve(security=Security(files["server"].certificate, files["server"].key))
    with connect(served.address, files) as channel:
        assert info(channel).version
    assert cannot_connect(connect(served.address, files, trusting="strange-ca"))
    assert cannot_connect(grpc.insecure_channel(served.address))


def test_mtls_refuses_clients_without_a_certificate_of_our_authority(serve, files):
    own = Security(files["server"].certificate, files["server"].key, client_ca=files["ca"].certificate)
    served = serve(security=own)
    with connect(served.address, files, "camera-7") as channel:
        assert info(channel).version
    assert cannot_connect(connect(served.address, files))
    assert cannot_connect(connect(served.address, files, "stranger"))


def certificate_name(address):
    import socket
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as raw, context.wrap_socket(raw) as tls:
        return tls.getpeercert(binary_form=True)


def test_a_new_certificate_is_used_by_new_connections_and_a_broken_one_is_not(serve, files, tmp_path, caplog):
    certificate, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    shutil.copy(files["server"].certificate, certificate)
    shutil.copy(files["server"].key, key)
    served = serve(security=Security(certificate, key))
    first = certificate_name(served.address)
    with connect(served.address, files) as old_channel:
        assert info(old_channel)
        certificate.write_bytes(files["renewed"].certificate.read_bytes())  # its key is not there yet
        with caplog.at_level(logging.ERROR):
            assert certificate_name(served.address) == first
        assert "the old ones stay in use" in caplog.text
        key.write_bytes(files["renewed"].key.read_bytes())
        assert certificate_name(served.address) != first
        assert info(old_channel)
        with connect(served.address, files) as channel:
            assert info(channel)


def bearer(token, scheme="Bearer"):
    return {"metadata": (("authorization", f"{scheme} {token}"),)}


def test_calls_need_a_token_of_the_file_and_health_needs_none(serve, tmp_path, make_packet, caplog):
    file = tmp_path / "tokens"
    file.write_text(f"# cameras\n{TOKEN}  # the first\n\n{OTHER}\n")
    served = serve(security=Security(token_file=file))
    with caplog.at_level(logging.DEBUG):
        for good in (TOKEN, OTHER):
            assert info(served.channel, **bearer(good)).version
        assert info(served.channel, **bearer(TOKEN, "bearer")).version
        wrong = "wrong-token-that-nobody-gave-out"
        for bad in ({}, bearer(wrong), bearer(TOKEN, "Basic"), bearer(TOKEN[:-1])):
            code, reason, error = refused(lambda bad=bad: info(served.channel, **bad))
            assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
            assert wrong not in error.details()
        frames = iter([pb.ClassifyStreamRequest(request=classify(make_packet()))])
        stream = served.stub.ClassifyStream(frames, timeout=60)
        assert refused(lambda: list(stream))[1] == "UNAUTHENTICATED"
        frames = iter([pb.ClassifyStreamRequest(request=classify(make_packet()))])
        (answer,) = served.stub.ClassifyStream(frames, timeout=60, **bearer(TOKEN))
        assert answer.result.predictions
        probe = health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert probe.status == health_pb2.HealthCheckResponse.SERVING
    assert not any(secret in caplog.text for secret in (TOKEN, OTHER, wrong))


def test_tokens_change_with_their_file_unless_the_new_one_is_no_good(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cloud.front.access, "CHECK_EVERY_S", 0.0)
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    tokens = Tokens(file)
    assert (tokens.accepts(TOKEN), tokens.accepts(OTHER)) == (True, False)
    file.write_text(OTHER + "\n")
    assert (tokens.accepts(TOKEN), tokens.accepts(OTHER)) == (False, True)
    file.write_text("# none left\n")
    assert tokens.accepts(OTHER)
    file.unlink()
    assert tokens.accepts(OTHER)
    assert OTHER not in caplog.text


@pytest.mark.parametrize("text", ["", "# nothing\n", "short\n", "with a space in it, or two\n"])
def test_a_token_file_that_lets_nobody_in_is_refused_without_being_quoted(tmp_path, text):
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(BadConfiguration) as caught:
        Security(token_file=tmp_path / "tokens").check("127.0.0.1")
    assert not text.strip() or text.strip() not in str(caught.value)


def test_without_tls_it_binds_loopback_only_unless_told_otherwise(serve, tiny_clip, tiny_codec):
    engine = serve().engine
    with pytest.raises(BadConfiguration, match="--allow-plaintext"), background_server(engine, "0.0.0.0:0"):
        pass
    Security(allow_plaintext=True).check("0.0.0.0")
    for host in ("localhost", "127.0.0.1", "127.3.2.1", "::1"):
        Security().check(host)
    for host in ("::", "192.168.1.4", "localhost.example.org", "127.0.0.1.example.org"):
        with pytest.raises(BadConfiguration):
            Security().check(host)


def test_half_a_tls_configuration_is_refused_by_name(files, tmp_path):
    server, other = files["server"], files["renewed"]
    wrong = [
        (Security(certificate=server.certificate), "go together"),
        (Security(client_ca=files["ca"].certificate), "needs --tls-cert"),
        (Security(server.certificate, other.key), "not a certificate and its key"),
        (Security(server.certificate, tmp_path / "missing.key"), r"missing\.key: cannot be read"),
        (Security(server.certificate, server.key, server.key), "contains no PEM certificate"),
    ]
    for security, says in wrong:
        with pytest.raises(BadConfiguration, match=says) as caught:
            security.check("127.0.0.1")
        assert "PRIVATE" not in str(caught.value)


def test_a_client_that_sends_too_much_is_told_when_to_come_back(serve, make_packet):
    served = serve(security=Security(rate_per_s=0.01, burst=2))  # so slow that a busy machine earns no third
    request = classify(make_packet())
    for _ in range(2):
        assert served.stub.Classify(request, timeout=60).predictions
    code, reason, error = refused(lambda: served.stub.Classify(request, timeout=60))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    retry = error_details_pb2.RetryInfo()
    assert rpc_status.from_call(error).details[1].Unpack(retry)
    assert 0 < retry.retry_delay.ToMilliseconds() <= 100_001
    frames = iter([pb.ClassifyStreamRequest(request=classify(make_packet(), frame_id=3))])
    (answer,) = served.stub.ClassifyStream(frames, timeout=60)
    assert (answer.error.reason, answer.frame_id) == ("RATE_LIMITED", 3)
    assert answer.error.retry_after_ms > 0
    # A token that nobody checks makes no other client
    assert refused(lambda: served.stub.Classify(request, timeout=60, **bearer(OTHER)))[1] == "RATE_LIMITED"
    assert info(served.channel)


def test_each_token_has_its_own_share(serve, make_packet, tmp_path):
    (tmp_path / "tokens").write_text(f"{TOKEN}\n{OTHER}\n")
    served = serve(security=Security(token_file=tmp_path / "tokens", rate_per_s=0.01, burst=1))
    request = classify(make_packet())
    for token in (TOKEN, OTHER):
        assert served.stub.Classify(request, timeout=60, **bearer(token)).predictions
        assert (
            refused(lambda token=token: served.stub.Classify(request, timeout=60, **bearer(token)))[1] == "RATE_LIMITED"
        )


def test_the_bucket_fills_at_its_rate_up_to_the_burst():
    now = [0.0]
    limiter = RateLimiter(10, 5, clock=lambda: now[0])
    limiter.charge("a", 5)
    with pytest.raises(RateLimited) as caught:
        limiter.charge("a")
    assert 100 <= caught.value.retry_after_ms <= 102
    limiter.charge("b", 5)
    now[0] = 0.3
    limiter.charge("a", 3)
    now[0] = 100.0
    limiter.charge("a", 20)  # more than the burst: passes once, and is paid for later
    now[0] = 101.0
    with pytest.raises(RateLimited):
        limiter.charge("a")
    assert limiter.refused == 2
