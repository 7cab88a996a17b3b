"""Training: moai-nano from nothing, on one machine."""
