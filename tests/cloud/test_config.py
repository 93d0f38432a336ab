"""Settings: which source wins, what each refuses, and `check-config`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from cloud.cli import main
from cloud.config import OWNED_ELSEWHERE, SETTINGS, add_flags, load_config
from cloud.errors import BadConfiguration


def load(*flags, env=None, toml=None, tmp_path=None):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    if toml is not None:
        (tmp_path / "cloud.toml").write_text(toml)
        flags = ("--config", str(tmp_path / "cloud.toml"), *flags)
    return load_config(parser.parse_args(flags), env or {})


def test_flags_win_over_environment_over_file_over_defaults(tmp_path):
    toml = 'port = 1\nqueue = 10\nbatch = 4\ntls_cert = "a.pem"\nclip = ["one", "two"]\nreflection = true\n'
    env = {"THINWIRE_PORT": "2", "THINWIRE_QUEUE": "20", "THINWIRE_BUNDLE": "conv, layered", "OTHER": "x"}
    config = load("--port", "3", "--no-reflection", env=env, toml=toml, tmp_path=tmp_path)
    assert (config["port"], config["queue"], config["batch"], config["host"]) == (3, 20, 4, "127.0.0.1")
    assert (config["clip"], config["bundle"]) == (["one", "two"], ["conv", "layered"])
    assert (config["reflection"], str(config["tls_cert"])) == (False, "a.pem")
    sources = [config.sources[key] for key in ("port", "queue", "batch", "host", "reflection")]
    assert sources == ["--port", "THINWIRE_QUEUE", str(tmp_path / "cloud.toml"), "default", "--reflection"]


def test_the_file_may_be_named_by_the_environment(tmp_path):
    (tmp_path / "x.toml").write_text("grace = 1.5")
    assert load(env={"THINWIRE_CONFIG": str(tmp_path / "x.toml")})["grace"] == 1.5


def test_variables_that_other_parts_read_are_not_called_misspelt(caplog):
    """One warning told of `THINWIRE_CODER=python`, the next said that it is no setting."""
    root = Path(__file__).resolve().parents[2]
    rooms = ("thinwire", "edge", "cloud", "export", "synthesis", "benchmarks")
    files = [root / "setup.py", *(path for room in rooms for path in (root / room).rglob("*.py"))]
    read = set(re.findall(r"environ(?:\.get\(|\[)\"(THINWIRE_\w+)\"", "\n".join(path.read_text() for path in files)))
    assert len(read) > 2
    assert read <= OWNED_ELSEWHERE | {setting.variable for setting in SETTINGS}
    load(env=dict.fromkeys(OWNED_ELSEWHERE, "1"))
    assert not caplog.records


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("prot = 1", "no setting 'prot'"),
        ("port = 70000", "port: 70000 is not a port"),
        ("port = true", "port: "),
        ("[port]\nx = 1", "wrong kind"),
        ("clip = [1]", "wrong kind"),
        ("reflection = 3", "wrong kind"),
        ("grace = -1", "seconds, 0 or more"),
        ("grace = nan", "seconds, 0 or more"),
        ("confidence = 1.0", "not a probability"),
        ("rate-limit = 0", "not a rate above 0"),
        ("port = ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_key(toml, says, tmp_path):
    with pytest.raises(BadConfiguration, match=says) as caught:
        load(toml=toml, tmp_path=tmp_path)
    assert "cloud.toml" in str(caught.value)


def test_a_wrong_variable_is_refused_and_an_unknown_one_is_told(caplog):
    with pytest.raises(BadConfiguration, match=r"THINWIRE_PORT: .*tcp"):
        load(env={"THINWIRE_PORT": "tcp://10.0.0.7:50051"})
    load(env={"THINWIRE_QUEUES": "1"})
    assert "THINWIRE_QUEUES is not a setting" in caplog.text
    with pytest.raises(BadConfiguration, match="cannot be read"):
        load(env={"THINWIRE_CONFIG": "/nowhere.toml"})


def test_check_config_prints_every_setting_with_its_source(tmp_path, capsys, monkeypatch, tiny_codec):
    tokens = tmp_path / "tokens"
    tokens.write_text("a-secret-that-must-not-show\n")
    monkeypatch.setenv("THINWIRE_TOKEN_FILE", str(tokens))
    assert main(["check-config", "--bundle", str(tiny_codec.path), "--port", "0"]) == 0
    out = capsys.readouterr().out
    for setting in SETTINGS:
        assert f"\n{setting.name} " in "\n" + out
    assert f"{tokens}  # THINWIRE_TOKEN_FILE" in out
    assert "= 0  # --port" in out
    assert tiny_codec.model_id.hex() in out
    assert "secret" not in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--host", "0.0.0.0"], "--allow-plaintext"),
        (["--token-file", "/nowhere/tokens"], "/nowhere/tokens: cannot be read"),
        (["--tls-cert", "/nowhere/tls.pem"], "go together"),
        (["--bundle", "nonesuch"], "nonesuch"),
        (["--config", "/nowhere.toml"], "cannot be read"),
    ],
)
def test_what_check_config_refuses_serve_refuses_in_the_same_words(args, says, capsys):
    for command in ("check-config", "serve"):
        assert main([command, *args]) == 1
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [("--device", "gpu"), ("--device", "cuda:x"), ("--precision", "half"), ("--clip-backend", "tensorrt")]
)
def test_check_config_refuses_values_that_serve_would_refuse_later(flags, capsys):
    with pytest.raises(SystemExit):
        main(["check-config", *flags])
    assert f"{flags[1]!r} is not one of" in capsys.readouterr().err
