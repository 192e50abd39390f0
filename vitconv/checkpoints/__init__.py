"""What people have, as content by name: files, folders and the Hub, unwrapped, and what a file says of itself."""
