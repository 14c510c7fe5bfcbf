//! A pipe from a process: the I/O thread reads our end, and the other end is a plain handle for its standard streams.
//! Windows' own anonymous pipes can only be read by a thread that does nothing else.

use std::fs::{File, OpenOptions};
use std::io;

use tokio::net::windows::named_pipe::{NamedPipeServer, ServerOptions};

use super::super::Child;
use crate::sys::io_thread;

/// Our end, which reads, and the other one.
pub(in crate::process) fn pair() -> io::Result<(NamedPipeServer, File)> {
    let name = format!(r"\\.\pipe\mirai-stderr-{}", crate::sys::token());
    let _inside = io_thread::handle().enter();
    // Nobody can guess the name, and the first to connect is the only one.
    let reader = ServerOptions::new()
        .access_outbound(false)
        .first_pipe_instance(true)
        .max_instances(1)
        .create(&name)?;
    let writer = OpenOptions::new().write(true).open(&name)?;
    Ok((reader, writer))
}

/// Collects what is said until nobody is left who could say more.
pub(in crate::process) async fn read_all(child: &Child, reader: &NamedPipeServer) {
    // The other end is open already.
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
