//! Reading a link on the I/O thread.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::descriptors::{SCARCE, is_crowded};
use super::{CROWDED_TRIES, Incoming, UnixLink};
use crate::memory::Arrival;
use crate::protocol::FrameReader;

/// Reads frames and hands them to `on_frame` until the link is over.
pub(super) async fn read<M, F>(
    link: Arc<UnixLink>,
    reader: FrameReader<M>,
    mut on_frame: F,
) -> io::Result<()>
where
    M: serde::de::DeserializeOwned,
    F: FnMut(M, Arrival),
{
    let mut incoming = Incoming::new(reader);
    incoming.one_of_many = true;
    let mut tries = 0;
    loop {
        // First: bytes may have come along with the handshake.
        while let Some((message, body)) = incoming.next_frame()? {
            on_frame(message, body);
        }
        let mut ready = link.data.sink.readable().await?;
        let filled = ready.try_io(|fd| incoming.fill(fd.as_fd()));
        let crowded = matches!(&filled, Ok(Err(e)) if is_crowded(e));
        if crowded && tries < CROWDED_TRIES {
            // What other links have passed makes room once it is mapped; nobody tells.
            tries += 1;
            tokio::time::sleep(SCARCE).await;
            continue;
        }
        tries = 0;
        match filled {
            Ok(Ok((0, _))) => return Ok(()),
            // A short read has emptied the socket; asking again would
            // only cost a system call to hear so.
            Ok(Ok((_, true))) => ready.clear_ready(),
            Ok(Ok((_, false))) => {}
            Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(e)) => return Err(e),
            Err(_would_block) => {}
        }
    }
}
