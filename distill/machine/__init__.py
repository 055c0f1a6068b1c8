"""The machine: its console, devices, processes, disk and speed."""
