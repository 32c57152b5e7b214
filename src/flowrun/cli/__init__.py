"""The ``flowrun`` command."""

from flowrun.cli.commands import main

__all__ = ["main"]
