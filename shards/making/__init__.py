"""Makes shards from sources: list the pictures, plan the shards, check, write, finish."""
