"""Search spaces: one a balancer and one a resampler, as data over the method's `Options`, in a YAML file of its name.

A file holds `kind` (balancer or resampler), `search` {option: what to draw it from} and `left` {option: why it is not
searched}, so that every option is in one of the two. `training.yaml` holds what is searched along with every method.
"""

from equipoise.tune_spaces.parameter import Parameter
from equipoise.tune_spaces.space import Space, load, searched, space_for

__all__ = ["Parameter", "Space", "load", "searched", "space_for"]
