"""Recipes: their settings, and reading them. Imports no torch."""
