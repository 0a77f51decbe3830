"""Starts the processes of a training, past the pitfalls of Accelerate, DeepSpeed and torch."""
