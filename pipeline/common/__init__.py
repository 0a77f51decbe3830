"""The ground floor: what every room needs. It imports nothing of ours, and no torch."""
