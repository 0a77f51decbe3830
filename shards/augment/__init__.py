"""Augmentation on the way into shards: `spec` says what is asked for, `operations` does it."""
