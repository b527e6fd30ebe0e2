"""The patching engine: declare patches, read upstream's source, plan, apply and undo."""
