"""The ground floor: what all other packages of the project use. It imports none of them, nor torch."""
