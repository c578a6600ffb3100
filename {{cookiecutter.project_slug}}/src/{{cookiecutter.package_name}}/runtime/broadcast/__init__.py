"""One message to all: every worker of the service and, with Redis, of all its pods."""

from .hub import Subscription, publish, subscribe

__all__ = ["Subscription", "publish", "subscribe"]
