"""Generators: an autoencoder and a noise predictor, loaded from folders or published presets."""
