"""What the package needs from the machine: files, locks, processes, progress."""
