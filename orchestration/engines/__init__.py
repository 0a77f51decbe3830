"""Engines: each a thin layer over commands that start and watch jobs."""
