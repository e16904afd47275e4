"""The whole way: client, ingress, node, JetStream, worker."""
