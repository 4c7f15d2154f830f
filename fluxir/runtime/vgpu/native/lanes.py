"""x"""

HELPERS = {}
