"""Encoders: families of approximate posteriors q(z|x), one file per family; ``base.py`` is the contract."""
