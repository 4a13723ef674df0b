"""The three tools of a rollout."""
