"""Normalizers trained side by side: recipe → trials → sweep, by one of several engines → a folder of results."""
