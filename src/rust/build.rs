//! Tells the crate which R it is built for: `cfg(r_4_4)` holds from R 4.4 on, and so forth.
//!
//! extendr-ffi has asked that R for its version and passes it on. Where there is no R it assumes
//! a recent one, and so do we.

fn main() {
    let number = |part| {
        let name = format!("DEP_R_R_VERSION_{part}");
        println!("cargo:rerun-if-env-changed={name}");
        std::env::var(name).ok()?.parse::<u32>().ok()
    };
    let version = number("MAJOR").zip(number("MINOR")).unwrap_or((4, 5));
    for minor in 4..=6 {
        println!("cargo:rustc-check-cfg=cfg(r_4_{minor})");
        if version >= (4, minor) {
            println!("cargo:rustc-cfg=r_4_{minor}");
        }
    }
    println!("cargo:rerun-if-changed=build.rs");
}
