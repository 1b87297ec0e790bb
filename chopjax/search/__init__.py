"""Which sizes a student could have: the space, what each candidate costs, and which are worth trying. No jax."""
