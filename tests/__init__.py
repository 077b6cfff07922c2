"""Tests mirror the packages; run them with `make test`."""
