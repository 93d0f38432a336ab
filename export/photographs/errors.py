"""What can be wrong with photographs."""

from __future__ import annotations

from thinwire.errors import ThinwireError


class PhotographsError(ThinwireError):
    """A source of photographs cannot be used; the message names the source and the fix."""

    reason = "BAD_PHOTOGRAPHS"
