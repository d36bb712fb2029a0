"""What `serve up|status|down|build` do: instances of Ray and Serve, what is deployed on them, and the wait until it answers."""
