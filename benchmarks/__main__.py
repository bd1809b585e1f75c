"""`python -m benchmarks` measures speed and memory and keeps every table in `benchmarks/results`."""

from benchmarks import attacks, ceiling, imports, memory, pairs, speed, training

for benchmark in (speed, ceiling, pairs, memory, attacks, training, imports):
    summary = (benchmark.__doc__ or "").partition("\n")[0]
    print(f"\n{benchmark.__name__.removeprefix('benchmarks.')}: {summary}")
    benchmark.main()
