"""The drivers: one module each, strangers to one another, imported on first use."""
