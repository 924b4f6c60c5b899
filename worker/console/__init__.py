"""The moderators' pages: server-rendered over schema `moderation`, and nothing that SQL refuses."""
