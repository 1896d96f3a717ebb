"""What protects a run from a number that is far from the usual."""
