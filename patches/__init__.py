"""The built-in plugins, one patch a file, written against the same hooks as a user's plugin."""

if __name__ == "patches":
    raise ImportError("import coati_ext.patches, not patches: a second name would load it twice")
