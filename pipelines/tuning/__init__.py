"""`equipoise tune`: a search over the options of a balancer and a resampler, and the training parameters along with them."""
