//! What byte code is taken out of has none left, and what passes the scan has none to take out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mirai_scan::{Scanner, strip};

fuzz_target!(|bytes: &[u8]| {
    let passes = Scanner::new().scan(bytes, &[], 1000, &|_, _| None).is_ok();
    match strip(bytes, &[]) {
        Ok(Some(stripped)) => {
            assert!(!passes);
            assert!(!matches!(strip(&stripped.bytes, &[]), Ok(Some(_))));
        }
        Ok(None) => {}
        Err(error) => assert!(!passes, "{error}"),
    }
});
