"""What a recipe may say, and reading it. Imports no torch."""
