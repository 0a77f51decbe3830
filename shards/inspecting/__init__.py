"""Look at shards without changing them: verify every byte, count, show."""
