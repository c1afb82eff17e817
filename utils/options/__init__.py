"""Declares options, and reads them from YAML files and flags."""
