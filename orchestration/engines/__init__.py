"""Engines: each is a thin layer over a scheduler's commands that start and watch jobs."""
