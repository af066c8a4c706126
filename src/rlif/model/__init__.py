"""A causal language model: loading it, running it over packed tokens, its log-probabilities."""
