"""What is done to gradients, updates or weights."""
