"""Untrusted bytes to one upright sRGB image, or a refusal that says why not."""
