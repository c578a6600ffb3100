"""Importing it gives prometheus_client its values over several processes."""

from . import values as values

from . import client as client  # isort: skip  # after the values that it gives metrics
