"""Forms of attention and of convolutions that exist only because a CPU is slow; no GPU or TPU takes them."""
