"""DreamBooth: teaches a Stable Diffusion model the classes of a labelled data set."""
