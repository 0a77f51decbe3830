"""From a shard folder to crops: where samples lie, their bytes, and the part that is wanted."""
