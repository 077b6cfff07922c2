"""The network as a service over HTTP, and its page."""
