"""The claims, one file each. A new file here that sets ``CLAIM`` is found by itself."""
