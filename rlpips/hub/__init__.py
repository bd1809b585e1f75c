"""Named weights: the registry, the files on this machine, and what is in them."""

from rlpips.hub.registry import WeightsEntry, list_weights

__all__ = ["WeightsEntry", "list_weights"]
