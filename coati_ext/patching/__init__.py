"""The patching engine: declare, read upstream's source, plan, apply in one transaction, undo."""
