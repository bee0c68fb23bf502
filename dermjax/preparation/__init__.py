"""`prepare`: labelled images, or phantoms, become a manifest with leak-free splits and a page to look at."""
