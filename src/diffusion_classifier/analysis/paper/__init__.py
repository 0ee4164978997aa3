"""The paper's claims, checked on the bundled models."""
