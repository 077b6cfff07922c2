"""The behaviours of LSeg's first figure on photographs, word by word."""
