"""All here is yours but runtime/, which is the template's and replaced by updates."""

from . import runtime as runtime  # before all else, so that every metric counts for all processes
