"""The CCA model, its entropy coding, its bitstream and its files: all that a decoder needs."""
