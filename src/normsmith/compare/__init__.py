"""Normalizers trained side by side: recipe → trials → sweep → results → statistics."""
