"""What the metadata blocks of a file say of its origin: PNG texts, XMP, generators' marks, C2PA."""
