"""The rollout service and its embedded generation engine."""
