"""The mathematics of diffusion: noise schedules, denoisers, samplers, and the one function from text to image."""
