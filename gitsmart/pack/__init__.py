"""Pack bytes and the disk they lie on: index, read, select, write. Knows no refs and no repositories."""
