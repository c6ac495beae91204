"""How fast: operations against plain formulations and the roofline, models and towers against themselves unreduced."""
