"""Classifiers of skin lesions: trained on real, or real and synthetic, images and judged on real ones only."""
