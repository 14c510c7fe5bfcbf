//! Random bytes and names from the operating system.

/// 24 random hexadecimal characters, for names that nobody can guess.
pub fn token() -> String {
    let mut bytes = [0u8; 12];
    random(&mut bytes);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Fills `bytes` with random ones from the operating system.
pub fn random(bytes: &mut [u8]) {
    let mut at = 0;
    while at < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[at..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => at += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("the operating system has no random numbers: {e}"),
        }
    }
}
