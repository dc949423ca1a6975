"""Changes of a model as values, and how they are put on and taken off."""
