"""Data sets as tensors in memory: digits without any file, the known sets and image folders from a path the user gives."""
