//! A pipe from a process: the I/O thread reads our end, and the other end is a plain handle for its standard streams.
//! Windows' own anonymous pipes can only be read by a thread that does nothing else.

use std::fs::{File, OpenOptions};
use std::io;

use tokio::net::windows::named_pipe::{NamedPipeServer, ServerOptions};

use super::super::Child;
use crate::sys::io_thread;
use crate::sys::security::OnlyUs;

/// Our end, which reads, and the other one.
pub(in crate::process) fn pair() -> io::Result<(NamedPipeServer, File)> {
    let name = format!(r"\\.\pipe\mirai-stderr-{}", crate::sys::token());
    let _inside = io_thread::handle().enter();
    let only_us = OnlyUs::new()?;
    let mut attributes = only_us.attributes();
    let mut options = ServerOptions::new();
    // Others may see the name as soon as it is there: the first to connect is the only one, and of this user.
    options
        .access_outbound(false)
        .first_pipe_instance(true)
        .max_instances(1);
    // SAFETY: the attributes and what they point to are valid for the call.
    let reader = unsafe {
        options.create_with_security_attributes_raw(&name, (&raw mut attributes).cast())?
    };
    let writer = OpenOptions::new().write(true).open(&name)?;
    Ok((reader, writer))
}

/// Collects what is said until nobody is left who could say more.
pub(in crate::process) async fn read_all(child: &Child, reader: &NamedPipeServer) {
    // The other end is open already, or has been.
    let _ = reader.connect().await;
    let mut bytes = [0; 4096];
    while reader.readable().await.is_ok() {
        match reader.try_read(&mut bytes) {
            Ok(0) => return,
            Ok(n) => child.keep(&bytes[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
