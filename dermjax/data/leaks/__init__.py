"""Leaks: near-duplicates by perceptual hashes, and the audit of manifests."""
