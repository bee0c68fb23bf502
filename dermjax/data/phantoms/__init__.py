"""Phantoms: procedural dermoscopy with known truth, from a seed to pixels and the words for them."""
