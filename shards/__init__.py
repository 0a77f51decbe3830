"""Corpus to WebDataset tars to batches."""
