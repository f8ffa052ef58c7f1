"""One room per normalizer; `catalog.py` lists them. Nothing here imports torch until a room is opened."""
