"""vLLM as the engine: the same prompts, noise, choices and stops; forward passes, attention and batches are vLLM's."""
