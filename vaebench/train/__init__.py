"""Training of a run: session.py is the way in, trainer.py the loop over steps."""
