"""Pixels in, verdict out: the latent-diffusion detector as a pure library."""
