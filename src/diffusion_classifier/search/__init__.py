"""The search for the class with the lowest error: strategies, shortlists, the engine and the posterior."""
