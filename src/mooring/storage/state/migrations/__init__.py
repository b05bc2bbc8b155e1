"""The history of the schema. Forward only: a downgrade is a restored backup."""
