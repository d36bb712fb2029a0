"""A model over data of any size: parts read, answered here or over Ray Data, and written in the input's order."""
