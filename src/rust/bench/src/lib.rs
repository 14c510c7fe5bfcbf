//! Benchmarks of `mirai-core`: see `benches`.
