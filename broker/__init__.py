"""The stream plane: what crosses the bus, the stream node, and the browser client."""
