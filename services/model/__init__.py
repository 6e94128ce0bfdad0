"""Torch-side library shared by the learner and the rollouts: tokenizers, chat, models, published weights."""
