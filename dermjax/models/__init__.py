"""Networks, nothing else: Stable Diffusion's three and the classifiers, one file an architecture."""
