"""The ground floor, which all other packages use; it imports none of them, and no torch."""
