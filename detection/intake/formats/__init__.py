"""What one format's container says of its picture beyond what the decoder tells."""
