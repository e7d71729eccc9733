"""What every parameter of a student is, read off shapes alone. Imports errors only."""
