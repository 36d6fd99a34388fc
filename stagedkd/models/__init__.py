"""Networks as named blocks and a head, so that they can be cut into substages."""
