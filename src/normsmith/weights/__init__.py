"""Weights normalized instead of activations, as parametrizations of torch, and gradients normalized before the optimizer's step."""

from normsmith.weights.catalog import catalog
from normsmith.weights.place import Placement, place

__all__ = ["Placement", "catalog", "place"]
