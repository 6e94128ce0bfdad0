"""From rows and rollouts to packed tensors without padding."""
