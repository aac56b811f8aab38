"""What a study leaves: the page, files for machines, pictures; and studies read back and compared."""
