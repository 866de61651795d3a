"""One module for each check, with a function ``check(bench)`` that yields rows. The catalog lists the modules."""
