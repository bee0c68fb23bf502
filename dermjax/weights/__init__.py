"""Other people's weight files and our parameter trees, in both directions."""
