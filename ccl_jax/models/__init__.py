"""Image and text towers in Flax Linen."""
