"""What can be learned from rows of data, and one update of it."""
