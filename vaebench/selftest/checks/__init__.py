"""The checks: each module has ``check(bench)``, which yields rows; a new one is named in the catalog."""
