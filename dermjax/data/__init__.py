"""Images on disk to arrays in memory, and what is known about each: no JAX in this room."""
