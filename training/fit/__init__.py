"""Fitting networks: the loop, gradients, and the task of each network."""
