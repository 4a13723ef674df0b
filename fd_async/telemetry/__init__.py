"""What the run says about itself: logs, metrics, status and progress. Never touches training."""
