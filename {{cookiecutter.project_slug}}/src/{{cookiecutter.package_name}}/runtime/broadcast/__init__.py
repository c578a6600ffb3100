"""One message to all: every worker of the service, and of all its pods where these can meet."""

from .hub import Subscription, publish, subscribe

__all__ = ["Subscription", "publish", "subscribe"]
