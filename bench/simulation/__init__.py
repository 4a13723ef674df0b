"""The control plane on a virtual clock: the project's own controller, with stand-ins for what takes the time."""
