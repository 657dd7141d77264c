"""Which mappings there are, which of them are legal, and which is best."""
