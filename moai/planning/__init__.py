"""What a model takes before it is loaded: memory and time of an answer, counted on its configuration."""
