"""Measuring images and models: sources, protocols, records."""
