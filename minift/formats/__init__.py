"""File formats: header and bytes of each, and nothing about models."""
