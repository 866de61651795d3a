"""Newer encoders, a bound and a prior for vaebench."""
