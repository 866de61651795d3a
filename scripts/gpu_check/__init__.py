"""Checks vaebench on a GPU; see __main__.py."""
