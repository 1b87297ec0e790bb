"""Losses that teach a chopped model, from tokens and from a teacher."""
