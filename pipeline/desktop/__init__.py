"""What desktops need to show `.cca` files: a MIME type and a thumbnailer (see docs/codec.md)."""
