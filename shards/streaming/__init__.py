"""Streams batches from shards: the order of training, mixtures, crops, batches on a device."""
