"""A causal language model as it is: its weights, tokenizer, parts and fingerprint, and what is in force on it."""
