"""A recipe becomes a plan of dependent jobs on an engine that exists."""
