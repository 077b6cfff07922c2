"""The state of a training: weights, optimiser, schedule, moving average and sample order."""
