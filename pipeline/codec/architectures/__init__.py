"""The kinds of models that the codec can train and code with, a folder each."""
