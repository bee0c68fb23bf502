"""What the paper printed, to stand beside our numbers: Derm-T2IM (Farooq et al., EMBC 2024, arXiv 2401.05159).

Test accuracies in percent, trained on real images only -> on real and synthetic ones (about 75 % synthetic). Test
sizes are read off its confusion matrices (659 and 227 images).
"""

TITLE = "Derm-T2IM (arXiv 2401.05159)"
TEST_SIZES = {"ISIC": 659, "HAM10000": 227}
ACCURACIES = {
    "vit": {"ISIC": (90.74, 93.03), "HAM10000": (81.50, 85.02)},
    "mobilenetv2": {"ISIC": (78.89, 81.35), "HAM10000": (70.33, 73.58)},
}
NOTES = (
    "One run, an unpublished split, no AUROC and no intervals; none of its four gains is statistically significant at "
    "these test sizes.",
    "On HAM10000 the sensitivity of its ViT fell, from 0.949 to 0.923.",
    "HAM10000 is part of the ISIC archive, which its generator was tuned on, so this test set may overlap the seed "
    "images.",
)
