"""What the package needs of the machine: whole files, locks, processes, progress."""
