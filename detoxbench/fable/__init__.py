"""The embedded default: a small fairy-tale world, a language model trained in it, and a judge of its manners."""
