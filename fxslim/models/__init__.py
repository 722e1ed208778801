"""Bundled models: trained weights with the data that calibrates and evaluates them, and their architectures."""
