from .loop import train as train
from .losses import TripletLoss as TripletLoss
from .named_recipes import RECIPES as RECIPES
from .recipe import Recipe as Recipe
from .settings import Settings as Settings
from .triplet_batch import Triplets as Triplets

__all__ = ["RECIPES", "Recipe", "Settings", "TripletLoss", "Triplets", "train"]
