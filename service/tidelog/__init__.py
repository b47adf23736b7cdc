"""Tidelog: a commit log on object storage.

Importing the package imports nothing else: the parts load when they are used.
"""
