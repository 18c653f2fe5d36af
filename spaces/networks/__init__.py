"""The networks that a recipe may ask for."""
