"""What the device thread is made of: its requests, forward passes and stored verdicts."""
