"""The built-in plugins, one patch a folder, written against the same hooks as a user's plugin.

Every folder has the same rooms. ``__init__`` says what the patch repairs and why, and registers it;
``sites`` names the upstream functions that it changes; ``options`` is its section of the
configuration; ``defects`` is what ``doctor --live`` measures of it. The other modules are the
replacements, named after what they replace. ``upstream.toml`` holds the released variants of those
functions and the verdict that each was given.
"""

if __name__ == "patches":
    raise ImportError("import coati_ext.patches, not patches: a second name would load it twice")
