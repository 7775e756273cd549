"""What speval runs in: the machine, its processes, their threads, forks and signals. Knows no evaluations."""
