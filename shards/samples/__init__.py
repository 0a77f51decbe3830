"""Pictures on their way into a shard: how they are checked, and the tables they are listed in."""
