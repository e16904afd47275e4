"""The stream node: tail → ring → subscriber → (sse | ws); holds the viewers' connections, never a truth of its own."""
