"""Sources, transforms, noun phrases and the training pipeline."""
