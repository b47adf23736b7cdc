"""Segment objects: many batches in one immutable object, and which bytes of it a read needs.

Knows nothing of where objects are kept.
"""
