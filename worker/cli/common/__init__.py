"""What commands share: options, how they print rows and progress, how they ask the database."""
