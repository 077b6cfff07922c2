"""The rendered world of the demo, and the report on it."""
