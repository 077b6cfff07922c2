"""What makes scores of the levels of a backbone and the vectors of labels."""
