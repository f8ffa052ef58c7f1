"""Data sets as tensors in memory: digits without any file, the known sets and image folders from a path the user gives."""

from normsmith.data.batches import Batches
from normsmith.data.catalog import Entry, known
from normsmith.data.dataset import Dataset, Split
from normsmith.data.load import load, load_pair

__all__ = ["Batches", "Dataset", "Entry", "Split", "known", "load", "load_pair"]
