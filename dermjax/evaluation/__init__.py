"""Predictions become numbers with intervals, a comparison of arms, and a page that people can look at."""
