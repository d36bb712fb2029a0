"""The one door to MLflow: runs, spool, registry and aliases, model card.

A run writes events to a spool under its storage and never waits for a server; a process of its own
(`sender`) carries them to MLflow, in order, as often as it takes, each once.
"""
