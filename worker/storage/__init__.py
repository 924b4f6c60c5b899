"""Object storage: the seam, its S3 and in-memory versions."""
