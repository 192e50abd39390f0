"""A folder that appears whole or not at all, and what is written beside the weights."""
