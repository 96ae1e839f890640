"""Building images: Dockerfiles as graphs of steps with content-addressed results, and what runs them."""
