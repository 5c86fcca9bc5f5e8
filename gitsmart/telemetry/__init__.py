"""What the operator sees: the line per request."""
