"""OKOME, the control plane: sessions, session tokens, routing, metadata. Never in the token path."""
