"""Running studies: data, trials, workers, and the command line."""
