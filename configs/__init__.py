"""Topologies: readable recipes, one a use. `midflight up demo` finds them by name."""
