//! Random bytes and names from the operating system.

use ring::rand::{SecureRandom, SystemRandom};

/// 24 random hexadecimal characters, for names that nobody can guess.
pub fn token() -> String {
    let mut bytes = [0u8; 12];
    random(&mut bytes);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Fills `bytes` with random ones from the operating system.
pub fn random(bytes: &mut [u8]) {
    SystemRandom::new()
        .fill(bytes)
        .expect("the operating system has random numbers");
}
