"""Scheduled re-training: train when the data changed, promote only what is better.

config     what is asked for, on top of a training recipe
data       fingerprints of the shards, and how they differ from a model's
decision   the rule of promotion, a pure function
state      one attempt and its phases, stored after each
record     the decision: tags of the version and its run, and the log
runner     the phases in order, and rolling back
launch     the real training and evaluation that the runner calls
"""
