"""Block-quantised weights: a few bits a weight, and a scale for every block of 32."""
