"""Worker and engines."""
