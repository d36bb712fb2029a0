"""Looking without doing: an experiment file for a table, a dry run, and what this machine and cluster have."""

from seekray.inspect.init_file import init, init_text

__all__ = ["init", "init_text"]
