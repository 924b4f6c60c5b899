"""The quality report: what a bundle is worth on any folder of labelled images."""
