"""Models and encoders with exact answers, for the self-test and the package's tests."""
