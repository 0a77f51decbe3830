"""Turns a recipe into a plan of dependent jobs, and runs it on an engine such as Slurm."""
