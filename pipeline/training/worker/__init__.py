"""What runs in each training worker: the loop and its parts."""
