"""The bus contract and the stream node."""
