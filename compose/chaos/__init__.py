"""Faults on purpose: systems that are hurt, viewers that remember, and a report that anyone can check."""
