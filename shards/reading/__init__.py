"""Reads shards: finds samples, fetches their bytes, and decodes crops of their pictures."""
