"""How records are read from JSON and TOML: an unknown key is an error."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid")
