"""Strategies that change the mixture while a model trains: one file each."""
