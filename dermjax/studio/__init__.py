"""The studio: a browser page over a folder of runs, and the same calls as JSON."""
