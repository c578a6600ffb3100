"""Importing it gives prometheus_client its values over several processes."""

from . import values as values
