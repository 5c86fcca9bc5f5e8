"""Bare repositories and the directory that holds them: lookup, refs, quarantine, connectivity."""
