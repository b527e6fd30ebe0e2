"""The words of ``COATI_EXT`` that mean off and on; anything else is a list of patches."""

OFF = ("", "0", "off", "false", "no")
ON = ("1", "on", "true", "yes")
