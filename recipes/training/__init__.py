"""Trains the runs of a recipe: the loop, losses, optimizers, checkpoints and evaluation."""
