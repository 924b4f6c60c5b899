"""A run that trains a bundle from scratch, a module a stage."""
