"""From a trial and a space to the records of one recipe."""
