"""A set of synthetic images against real ones: fidelity, diversity, copies, membership, use, shortcuts, fairness."""
