"""`fx.train`: training loops and saved models."""
