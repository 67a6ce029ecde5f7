"""What a decoder computes, and how its checkpoint is read: no backend here."""
