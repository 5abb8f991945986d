"""Access to the machine: errors, signals, processes, device, memory, flags, the config file."""
