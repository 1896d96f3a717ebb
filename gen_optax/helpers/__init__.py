"""Tree operations, lazy work and argument checks that every room shares."""
