"""Label sets: which labels each step of training asks for."""
