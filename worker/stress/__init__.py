"""Load for a deployment, and what it made of it: `unlatent stress`."""
