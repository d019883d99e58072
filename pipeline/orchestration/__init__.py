"""Recipes and kinds of worker, rendered for other systems."""
