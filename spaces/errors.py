"""The error of this package."""


class SpaceError(Exception):
    """A value that no space, recipe or network accepts."""
