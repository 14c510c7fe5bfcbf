//! How long the scan of files takes, such as those of `fuzz/corpus`.
//!
//! `cargo run --release -p mirai-scan --example time FILE …`

use std::time::Instant;

use mirai_scan::Scanner;

fn main() {
    for path in std::env::args().skip(1) {
        let bytes = std::fs::read(&path).expect("a file");
        let mut scanner = Scanner::new();
        let mut best = f64::INFINITY;
        for _ in 0..100 {
            let start = Instant::now();
            let result = scanner.scan(&bytes, &[], 10_000, &|_, _| None);
            best = best.min(start.elapsed().as_secs_f64());
            if let Err(error) = result {
                println!("{path}: {error}");
                break;
            }
        }
        println!("{path}: {} bytes in {:.3} µs", bytes.len(), best * 1e6);
    }
}
