"""What a training run leaves on disk, whole and verified or not there, and how it is read again."""
