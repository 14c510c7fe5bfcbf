//! Any bytes, the last of them in a piece of shared memory if the very last one says so.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mirai_scan::{Hooked, Piece, Scanner};

fuzz_target!(|bytes: &[u8]| {
    let hooked = |i: usize, j: usize| match (i, j) {
        (0, 0) => Some(Hooked::Environment),
        (0, _) => Some(Hooked::Other),
        _ => None,
    };
    let mut scanner = Scanner::new();
    let whole = scanner.scan(bytes, &[], 1000, &hooked);
    // The same again, with memory that has been used.
    assert_eq!(scanner.scan(bytes, &[], 1000, &hooked), whole);
    let Some((size, rest)) = bytes.split_last() else {
        return;
    };
    let at = rest.len().saturating_sub(usize::from(*size));
    let (bytes, data) = rest.split_at(at);
    let _ = scanner.scan(bytes, &[Piece { at, data }], 1000, &hooked);
    let at = at / 2;
    let _ = scanner.scan(bytes, &[Piece { at, data }], 1000, &hooked);
});
