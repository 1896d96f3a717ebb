"""GeN: the learning rate from the loss along the update."""
