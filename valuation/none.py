"""No resampling: every epoch holds every sample once."""

from equipoise.valuation.resampler import Resampler


class NoResampling(Resampler):
    name = "none"
