"""What `accelerate launch` runs: stages, losses, the training loop."""
