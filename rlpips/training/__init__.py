"""Training of metrics: natural, adversarial and contrastive, of heads or of the whole network."""

from rlpips.training.loop import Settings, train
from rlpips.training.losses import TripletLoss, Triplets
from rlpips.training.recipe import RECIPES, Recipe

__all__ = ["RECIPES", "Recipe", "Settings", "TripletLoss", "Triplets", "train"]
