"""Augmentation of pictures on their way into shards: `spec` describes it, `operations` does it."""
