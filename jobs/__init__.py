"""Entry points: each parses its configuration, builds, and runs."""
