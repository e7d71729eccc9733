"""The recipe: one strict YAML file, its schema, its messages and what its sections mean. Never imports the model."""
