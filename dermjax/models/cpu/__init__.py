"""Forms of layers that exist only because a CPU is slow, each with its own gradient; no GPU or TPU takes them."""
