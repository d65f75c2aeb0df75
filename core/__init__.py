"""What two packages or more share: models, components, errors, files, console."""
