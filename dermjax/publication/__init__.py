"""The stage that publishes: a curated manifest in, the data set in several forms with its card out."""
