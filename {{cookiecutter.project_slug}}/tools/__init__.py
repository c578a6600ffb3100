"""The template's: what `make load` and `make tune` run, in an environment of their own."""
