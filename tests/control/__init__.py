"""OKOME."""
