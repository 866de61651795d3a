"""Models and encoders whose every quantity is known exactly; the self-test and the package's own tests share them."""
