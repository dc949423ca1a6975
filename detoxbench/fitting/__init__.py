"""What fits are made of: training, activations, and example data that are made for them."""
