"""The trained networks as the losses see them: packed tokens in, numbers of scored tokens out."""
