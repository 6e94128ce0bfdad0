"""The ranks that train together: what they divide among them, and how a model is cut over them."""
