"""From a source to shards: list, plan, check, write, finish."""
