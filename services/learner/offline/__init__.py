"""Training on rows of data alone: supervised, reward model, direct preference optimization, distillation."""
