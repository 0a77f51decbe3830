"""The CCA architecture: causal context adjustment (Han et al., NeurIPS 2024)."""
