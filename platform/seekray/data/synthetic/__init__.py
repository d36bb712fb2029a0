"""What a generator learns from and makes: columns to numbers and back to a table."""
