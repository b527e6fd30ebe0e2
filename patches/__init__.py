"""The built-in plugins, one folder per patch, which use the same hooks as a user's plugin.

Every folder has the same modules. ``__init__`` says what the patch repairs and registers it;
``sites`` lists the upstream functions that it changes; ``options`` is its section of the
configuration; ``defects`` has the measurements for ``doctor --live``. The other modules hold the
replacement functions, named after what they replace. ``upstream.toml`` lists the released variants
of the changed functions, with a verdict for each.
"""

if __name__ == "patches":
    raise ImportError("import coati_ext.patches, not patches: a second name would load it twice")
