"""data2vec: an encoder learns what its own average over time says about what it does not see."""
