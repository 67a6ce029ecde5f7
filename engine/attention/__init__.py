"""Paged attention and the writing of K/V with RoPE: what lies between the segments of a decoder."""
