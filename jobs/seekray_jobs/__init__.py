"""Drivers of Ray jobs, run by the command line in its own process or by `python -m seekray_jobs.train`."""
