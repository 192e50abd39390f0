"""Read checkpoints from files, folders and the Hub: their tensors by name, and what they say of themselves."""
