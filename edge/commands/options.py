"""Options that several commands of `thinwire-edge` share."""

from __future__ import annotations

import argparse

from edge.defaults import DEFAULT_BUNDLE, DEFAULT_SERVER, DEFAULT_TIMEOUT_S, DEFAULT_TOP_K


def command(commands, name: str, brief: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A command with its help, examples as written."""
    return commands.add_parser(
        name,
        help=brief,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_question_options(sub: argparse.ArgumentParser) -> None:
    """What is asked of each image."""
    from thinwire.prompts import PROMPT_SETS

    sub.add_argument("--labels", metavar='"A,B,C"', help="what the images may show, separated by commas")
    sub.add_argument("--labels-file", metavar="FILE", help="labels from a text file, one a line (adds to --labels)")
    sub.add_argument(
        "--top-k",
        type=positive,
        default=DEFAULT_TOP_K,
        metavar="K",
        help=f"labels to show for each image ({DEFAULT_TOP_K})",
    )
    sub.add_argument(
        "--prompt-set", default="7", choices=list(PROMPT_SETS), help="how many prompt templates to use (7)"
    )


def add_line_options(sub: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Where the server is and how it is talked to (`edge.line.uplink.Line`)."""
    line = sub.add_argument_group("the line to the server")
    line.add_argument(
        "--server", default=DEFAULT_SERVER, metavar="HOST:PORT", help=f"server, or unix:PATH ({DEFAULT_SERVER})"
    )
    line.add_argument(
        "--timeout",
        type=seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help=f"most seconds to wait for an answer ({DEFAULT_TIMEOUT_S:g})",
    )
    line.add_argument("--tls", action="store_true", help="encrypt; trust the public certificate authorities")
    line.add_argument("--tls-ca", metavar="PEM", help="encrypt; trust the authority in this file instead")
    line.add_argument("--tls-cert", metavar="PEM", help="client certificate (mTLS)")
    line.add_argument("--tls-key", metavar="PEM", help="private key of --tls-cert")
    line.add_argument("--token-file", metavar="FILE", help="file that holds a token for the server")
    line.add_argument("--device-id", metavar="NAME", help="name of this device in the server's frame store")
    return line


def add_codec_options(sub: argparse.ArgumentParser) -> None:
    """Which encoder, and how it runs."""
    group = sub.add_argument_group("the encoder")
    group.add_argument(
        "--bundle",
        default=DEFAULT_BUNDLE,
        metavar="NAME|PATH",
        help=f"codec: a shipped bundle or a bundle's folder ({DEFAULT_BUNDLE})",
    )
    group.add_argument("--rate", metavar="low|mid|high", help="how much of an image to send (mid); for run also auto")
    group.add_argument("--threads", type=positive, default=1, metavar="N", help="CPU threads of the encoder (1)")
    group.add_argument("--precision", default="auto", choices=["auto", "fp32", "int8"], help="encoder weights (auto)")
    group.add_argument("--provider", default="cpu", choices=["cpu", "cuda"], help="ONNX Runtime provider (cpu)")


def add_ladder_option(sub: argparse.ArgumentParser) -> None:
    """What is sent step by step, in place of one bundle (`edge.line.ladder`)."""
    sub.add_argument(
        "--ladder",
        metavar="NAME[:RATE],...",
        help="bundles, cheap first, such as student,still: the first is sent, others where the server asks for them",
    )


def share(text: str) -> float:
    """A number from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return value


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or not 1 <= int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def seconds(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
