"""Synthetic images are scored against the real training images, and reasons against them written on their records."""
