"""Looking without doing: an experiment file for a table, a dry run, and what this machine and cluster have."""

from seekray.inspect.health import doctor, doctor_text
from seekray.inspect.init_file import init, init_text
from seekray.inspect.plan import dry_run, dry_run_text

__all__ = ["doctor", "doctor_text", "dry_run", "dry_run_text", "init", "init_text"]
