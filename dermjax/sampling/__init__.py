"""A request becomes a picture: the loaded model, start images, the compiled sampler, previews, provenance."""
