"""The four behaviours of LSeg's first figure, as figures."""
