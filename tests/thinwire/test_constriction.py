"""Our coders against constriction's, whose range coder the wire took over (x86-64 and macOS alone have its wheels)."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("constriction")

from tests.thinwire.constriction_coder import ConstrictionCoder, compare, random_coder


@pytest.mark.parametrize("context", ["none", "checkerboard"])
@pytest.mark.parametrize("compiled", [True, False])
def test_random_latents_and_mutated_packets(context, compiled):
    """`python -m tests.thinwire.constriction_coder` does this a million times."""
    rng = np.random.default_rng(5)
    accepted = 0
    for _ in range(60):
        coder = random_coder(rng, context, compiled)
        oracle = ConstrictionCoder(coder)
        accepted += sum(compare(rng, coder, oracle) for _ in range(5))
    assert 0 < accepted < 250  # some mutants are packets of other latents, most are not
