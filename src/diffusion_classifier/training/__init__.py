"""Small class-conditional models from scratch."""
