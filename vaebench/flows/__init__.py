"""Flows: invertible maps with a known Jacobian, conditioned on an image; one file per family."""
