"""The rules: one file each, which offers it as ``RULE``."""
