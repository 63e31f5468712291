"""No resampling: every epoch holds every sample once."""

from equipoise.valuation.resampler import Resampler


class NoResampling(Resampler):
    """Every epoch holds every sample once; no sweep of train is made but the final one."""

    name = "none"
