"""What makes scores of an image's features and the vectors of labels.

`dpt` and `scoring` are LSeg's: a decoder, and cosines of its pixels. `aggregator` is CAT-Seg's:
cosines of dense features that are in the text's space already, refined as a cost volume.
"""
