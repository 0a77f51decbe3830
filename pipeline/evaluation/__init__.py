"""Rate, distortion, BD-rate, classical codecs, plots and the report."""
