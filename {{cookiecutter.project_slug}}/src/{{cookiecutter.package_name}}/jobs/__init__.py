"""Work that must survive this process: `await jobs.enqueue(primes, limit)` leaves it in Redis."""
