"""Sweeps: `vaebench train -m ...`."""
