"""What people do with verdicts: views, the review queue, policies, webhooks, retention."""
