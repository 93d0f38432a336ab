"""Family `vae`: a β-VAE with the nets, sizes and rates of `conv`, so that the bottleneck is the only difference.

In training the decoder sees samples of a Gaussian posterior and the rate is its KL divergence from a learned Gaussian
prior, one β for each layer (Higgins et al. 2017, β-VAE). For coding, means are rounded to steps tied to the posterior's
width: see `export.rate.PosteriorRate`. Integer tables are counted over them as for every family.
"""

from __future__ import annotations

from dataclasses import replace

from export.families.conv import CONV
from export.rate import PosteriorRate

VAE = replace(CONV, name="vae", rate_model=PosteriorRate)
