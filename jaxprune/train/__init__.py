"""Training: one step and one loop for the reference, the proxies and the final model."""
