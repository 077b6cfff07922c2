"""The network as a service over HTTP, and its page: one process, or replicas of Ray Serve."""
