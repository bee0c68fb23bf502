"""What classical image processing measures on a photograph: colour, hair, artefacts, lesions, tone, quality."""
