"""Commands of operators over moderation: policies, webhooks, who may moderate."""
