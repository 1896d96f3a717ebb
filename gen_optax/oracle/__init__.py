"""What a loss closure can be asked."""
