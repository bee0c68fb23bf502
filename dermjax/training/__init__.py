"""The only training loop: state, optimizers, checkpoints, writers, and the loop itself."""
