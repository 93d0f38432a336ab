"""An operator's mistakes at `thinwire-cloud` end as one line, and before models are loaded."""

from __future__ import annotations

import socket

import pytest

from cloud.cli import main


def said(capsys) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    "words",
    [
        ["search", "--like", "9" * 30],
        ["search", "--like", "-1" + "9" * 30],
        ["search", "x", "--count", "9" * 30],
        ["search", "caf\udce9"],
        ["search", "x", "--device", "\udce9"],
        ["forget", "--id", "-" + "9" * 30],
        ["forget", "--label", "\ud800"],
        ["search", "--image", "/dev/zero"],
        ["search", "x", "--token-file", "/dev/zero"],
        ["search", "x", "--tls-ca", "/dev/zero"],
        ["kept", "--tls-ca", "/etc/hostname"],
    ],
    ids=str,
)
def test_questions_that_are_none(words, capsys):
    assert main([*words, "--server", "127.0.0.1:1", "--timeout", "1"]) in (1, 2)
    assert said(capsys).startswith("thinwire-cloud: ")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n", b"", b"two words\n", "schlüssel".encode()])
def test_a_token_file_that_holds_none(tmp_path, capsys, content):
    (tmp_path / "token").write_bytes(content)
    assert main(["search", "x", "--token-file", str(tmp_path / "token"), "--server", "127.0.0.1:1"]) == 1
    assert "holds no token" in said(capsys)


@pytest.mark.parametrize("seconds", ["nan", "0", "-1", "inf", "1e9", "x"])
def test_a_timeout_is_a_number_of_seconds(capsys, seconds):
    with pytest.raises(SystemExit):
        main(["kept", "--timeout", seconds])


@pytest.mark.parametrize("word", ["/dev/zero", "/dev/full"])
def test_a_configuration_without_an_end_is_refused(word, capsys):
    assert main(["check-config", "--config", word]) == 1
    assert "is a device" in said(capsys)


def test_a_port_in_use_is_told_before_models_are_loaded(capsys, monkeypatch):
    monkeypatch.setattr("cloud.cli._open", lambda config: pytest.fail("models were loaded"))
    with socket.create_server(("127.0.0.1", 0)) as held:
        assert main(["serve", "--port", str(held.getsockname()[1])]) == 1
        assert "--port" in said(capsys)
