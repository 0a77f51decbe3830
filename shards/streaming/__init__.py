"""From shards to batches: the order of training, mixtures, crops, batches on a device."""
