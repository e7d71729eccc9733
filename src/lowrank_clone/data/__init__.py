"""Sources, mixed, tokenised and packed into blocks. Imports errors only."""
