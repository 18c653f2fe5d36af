"""The errors of this package."""


class EnsembleError(Exception):
    """Predictions from which no ensemble can be built."""


class BundleError(EnsembleError):
    """A bundle that is not whole, not ours, or not safe to load."""
