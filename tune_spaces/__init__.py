"""Search spaces: one a balancer and one a resampler, as data over the method's `Options`. They arrive with `equipoise tune`."""
