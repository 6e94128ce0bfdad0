"""What a topology needs of memory and network, from shapes alone."""
