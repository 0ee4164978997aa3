"""Other kinds of models, for comparison."""
