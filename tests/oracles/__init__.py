"""Models and encoders whose every quantity is known, for tests; the self-test has its own, which these build on."""
