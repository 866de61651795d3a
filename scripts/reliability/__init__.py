"""Kill, starve and damage vaebench, and count what does not come back as it was."""
