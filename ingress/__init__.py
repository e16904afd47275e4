"""The ingress: a stream-aware relay between clients and stream nodes."""
