"""The method: statistics, selection, recovery."""
