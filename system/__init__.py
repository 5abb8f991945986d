"""What the program asks of the machine: errors, signals, processes, device, memory, flags,
the config file.
"""
